"""aurelio's semantic-router behind pipes: labelled texts with their vectors in, what it says of others out.

`bench.classifier_peers` starts it with the Python of an environment that has semantic-router. A line of its input is
one question, a line of its output the answer; vectors are base64 of float32, row by row.
"""

from __future__ import annotations

import base64
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np

BASE = "base"


class Known:
    """The parent's encoder: every text that will come has its vector already."""

    name = "known"

    def __init__(self, texts: Sequence[str], vectors: str) -> None:
        rows = np.frombuffer(base64.b64decode(vectors), dtype=np.float32).reshape(len(texts), -1)
        self._vectors = dict(zip(texts, rows, strict=True))

    def __call__(self, texts: Sequence[str]) -> list[Any]:
        return [self._vectors[text] for text in texts]


def main() -> None:
    """Answer until there is no further question."""
    answers, sys.stdout = sys.stdout, sys.stderr  # whatever the library prints is no answer
    print(json.dumps({"version": version("semantic-router")}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), file=answers, flush=True)


def answer(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Of each text judged: the top route, its score, the base's, the confidence; scores of the calibration texts."""
    library = import_module("semantic_router")
    utterances: dict[str, list[str]] = {}
    for text, label in asked["fitted"]:
        utterances.setdefault(label, []).append(text)
    routes = [library.Route(name=label, utterances=texts) for label, texts in utterances.items()]
    encoder = Known(asked["texts"], asked["vectors"])
    router = library.IndexedRouter(encoder, routes, top_k=asked["top_k"], aggregation=asked["aggregation"])
    in_scope = [(text, label) for text, label in asked["calibration"] if label in utterances and label != BASE]
    calibration = [said(router, text) for text, _ in in_scope]
    right = np.array([top == label for (top, _, _), (_, label) in zip(calibration, in_scope, strict=True)], dtype=float)
    confidence = learned(np.array([score for _, score, _ in calibration]), right)
    found: list[tuple[str, float, float, float]] = []
    seconds: list[float] = []
    for text in asked["judged"]:
        started = time.perf_counter()
        top, score, base = said(router, text)
        seconds.append(time.perf_counter() - started)
        found.append((top, score, base, confidence(score)))
    return {"calibration": [[score, base] for _, score, base in calibration], "judged": found, "seconds": seconds}


def said(router: Any, text: str) -> tuple[str, float, float]:
    """The best route that is not the base, its score, and the base's."""
    choices = router(text, limit=None)
    best = next(choice for choice in choices if choice.name != BASE)
    return best.name, best.confidence, next((choice.confidence for choice in choices if choice.name == BASE), 0.0)


def learned(scores: Any, right: Any) -> Callable[[float], float]:
    """Score to confidence by the library's own Platt scaling; the score itself where there is nothing to learn from."""
    if not len(right) or right.min() == right.max():
        return lambda score: min(max(score, 0.0), 1.0)
    calibrator = import_module("semantic_router.calibration").Calibrator.fit(scores, right, "platt")
    return lambda score: float(calibrator(score))


if __name__ == "__main__":
    main()
