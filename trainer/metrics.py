"""How an answer is scored: pure functions of the text generated and the text wanted, from 0 to 1."""

from __future__ import annotations

import json
import math
import re
import string
from collections import Counter
from typing import Literal, TypeGuard

from adapters.evidence import Metric
from adapters.rows import canonical_json

TextMetric = Literal["exact_match", "json_equal", "contains", "token_f1"]
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def scores_text(metric: Metric) -> TypeGuard[TextMetric]:
    """Whether `metric` needs nothing but the text that was written: no log-probabilities, no model at hand."""
    return metric in ("exact_match", "json_equal", "contains", "token_f1")


def score_text(metric: TextMetric, output: str, answer: str) -> float:
    """How right `output` is: 0 or 1, with `token_f1` anything between. Space around either does not count."""
    output, answer = output.strip(), answer.strip()
    if metric == "exact_match":
        return float(output == answer)
    if metric == "contains":
        return float(answer in output)
    if metric == "token_f1":
        return token_f1(output, answer)
    return float(_same_json(output, answer))


def answer_limit(longest: int) -> int:
    """Tokens that an answer may take where the longest one wanted takes `longest`, if nobody says otherwise."""
    return max(16, 2 * longest)


def can_still_match(output: str, answer: str) -> bool:
    """Whether `output`, generated so far, can still grow into an exact match of `answer`.

    A trailing replacement character may be the first half of a multi-byte one.
    """
    return answer.strip().startswith(output.rstrip("\ufffd").strip())


def token_f1(output: str, answer: str) -> float:
    """The harmonic mean of precision and recall over the words of both (Rajpurkar et al. 2016, arXiv 1606.05250).

        F1 = 2 c / (|output| + |answer|),  c = words in common, each as often as both have it

    As in SQuAD's own script words are lower-case, without ASCII punctuation and English articles. Where either has no
    word left, only two empty ones agree (Rajpurkar et al. 2018, arXiv 1806.03822).
    """
    said, wanted = _words(output), _words(answer)
    if not said or not wanted:
        return float(said == wanted)
    common = sum((Counter(said) & Counter(wanted)).values())
    return 2 * common / (len(said) + len(wanted))


def mean_probability(nll: float) -> float:
    """exp(−NLL): the geometric mean of the probabilities of an answer's tokens, `nll` in nats per token.

    It is 1 / perplexity: evidence holds scores from 0 to 1 of which more is better, a perplexity is neither.
    """
    return math.exp(-nll)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _same_json(output: str, answer: str) -> bool:
    try:
        return canonical_json(json.loads(output)) == canonical_json(json.loads(answer))
    except (ValueError, RecursionError):
        return False
