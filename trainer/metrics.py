"""How an answer is scored: pure functions of the text generated and the text wanted, 0 or 1."""

from __future__ import annotations

import json

from adapters.rows import canonical_json

from .config import ScoredMetric


def score_text(metric: ScoredMetric, output: str, answer: str) -> float:
    """1.0 where `output` is right, else 0.0. Space around either does not count."""
    output, answer = output.strip(), answer.strip()
    if metric == "exact_match":
        return float(output == answer)
    if metric == "contains":
        return float(answer in output)
    return float(_same_json(output, answer))


def can_still_match(output: str, answer: str) -> bool:
    """Whether `output`, generated so far, can still grow into an exact match of `answer`.

    A trailing replacement character may be the first half of a multi-byte one.
    """
    return answer.strip().startswith(output.rstrip("\ufffd").strip())


def _same_json(output: str, answer: str) -> bool:
    try:
        return canonical_json(json.loads(output)) == canonical_json(json.loads(answer))
    except (ValueError, RecursionError):
        return False
