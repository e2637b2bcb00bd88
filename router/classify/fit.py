"""Rows in, classifier out. The same rows, in any order, give the same digest."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapters.errors import BadInput, InvalidName
from adapters.rows import LabelledText
from adapters.types import parse_route_name

from .abstain import choose_score, conformal_threshold, decision_scores, separating_threshold
from .artifact import digest_of
from .classifier import BASE, Classifier
from .features import Features, fit_features
from .head import Head, Labels, Scalars, fit_head, fit_temperature, stack

NEGATIVES = frozenset({BASE, "oos"})
FOLDS = 5
MANY_ROWS = 5_000  # from here on one held-out fold is calibration enough, and four further fits are saved
FEW_EXAMPLES = 50  # a label with fewer keeps its rare terms in the vocabulary
DEFAULT_COVERAGE = 0.99
# Where every route has a single example nothing can be held out: then a text must score half of what an example does.
SHARE_WITHOUT_CALIBRATION = 0.5


@dataclass(frozen=True, slots=True)
class Calibration:
    """Held-out `logits` (rows, labels) and the column of each row's label, `targets` (rows,)."""

    logits: Scalars
    targets: Labels


def fit_classifier(rows: Sequence[LabelledText], *, coverage: float = DEFAULT_COVERAGE, seed: int = 0) -> Classifier:
    """Fit on `rows`; `base` and `oos` rows become the base class. `seed` moves only the folds.

    Raises `BadInput` listing every problem of the rows, `ClassifierInvalid` where the head does not converge.
    """
    if not 0 < coverage < 1:
        raise BadInput(f"coverage {coverage} is not between 0 and 1", hint="0.99 keeps 99 in 100 in-scope texts")
    distinct = _distinct(rows)
    features, head = _fit(distinct)
    held_out = _hold_out(distinct, head.labels, seed)
    base = head.labels.index(BASE) if BASE in head.labels else None
    temperature = fit_temperature(held_out.logits, held_out.targets)
    negative = held_out.targets == (-1 if base is None else base)
    score_name = choose_score(held_out.logits, negative, temperature, base)
    scores = decision_scores(score_name, held_out.logits, temperature, base)
    threshold = conformal_threshold(scores[~negative], coverage)
    summary: dict[str, object] = {
        "routes": [label for label in head.labels if label != BASE],
        "rows": dict(sorted(Counter(row.label for row in distinct).items())),
        "duplicates": len(rows) - len(distinct),
        "texts_in_two_labels": len(distinct) - len({row.text for row in distinct}),
        "rows_digest": _rows_digest(distinct),
        "features": features.size,
        "calibration_rows": int((~negative).sum()),
        "held_out_accuracy": _accuracy(held_out),
        "coverage": coverage,
        "coverage_holds": threshold is not None,
        "score": score_name,
    }
    if threshold is None:
        threshold = _fallback_threshold(scores, negative)
    classifier = Classifier(features, head, temperature, score_name, threshold, summary, digest="")
    if not len(scores):
        classifier = replace(classifier, threshold=_self_threshold(classifier, distinct))
    return replace(classifier, digest=digest_of(classifier))


def _distinct(rows: Sequence[LabelledText]) -> list[LabelledText]:
    """Rows without repeats, in an order that does not depend on the given one. Raises `BadInput`."""
    labels = {BASE if row.label in NEGATIVES else row.label for row in rows}
    problems: list[str] = []
    for label in sorted(labels - {BASE}):
        try:
            parse_route_name(label)
        except InvalidName as error:
            problems.append(error.message)
    if not rows:
        problems.append("no rows to fit on")
    elif labels == {BASE}:
        problems.append(f"all {len(rows)} rows are labelled base or oos: there is no route to tell apart")
    if problems:
        shown = "; ".join(problems[:20])
        raise BadInput(shown, hint="give rows {text, label}, label = a route's name, base or oos")
    pairs = {(BASE if row.label in NEGATIVES else row.label, row.text) for row in rows}
    return [LabelledText(text, label) for label, text in sorted(pairs)]


def _fit(rows: Sequence[LabelledText]) -> tuple[Features, Head]:
    counts = Counter(row.label for row in rows)
    features = fit_features([row.text for row in rows], [counts[row.label] < FEW_EXAMPLES for row in rows])
    matrix = stack([features.transform(row.text) for row in rows], features.size)
    return features, fit_head(matrix, [row.label for row in rows])


def _hold_out(rows: Sequence[LabelledText], labels: tuple[str, ...], seed: int) -> Calibration:
    """Logits of rows by features and heads that never saw them: 5 folds, or one of the 5 with `MANY_ROWS`."""
    folds = _folds(rows, seed)
    columns = {label: at for at, label in enumerate(labels)}
    logits: list[Scalars] = []
    targets: list[int] = []
    for fold in range(1 if len(rows) >= MANY_ROWS else FOLDS):
        held_out = [row for row, own in zip(rows, folds, strict=True) if own == fold]
        if not held_out:
            continue
        features, head = _fit([row for row, own in zip(rows, folds, strict=True) if own != fold])
        logits += [head.logits(features.transform(row.text)) for row in held_out]
        targets += [columns[row.label] for row in held_out]
    return Calibration(np.array(logits).reshape(len(targets), len(labels)), np.array(targets, dtype=np.int64))


def _folds(rows: Sequence[LabelledText], seed: int) -> list[int]:
    """A fold for each row, every label dealt evenly; −1 (never held out) for a label's only row."""
    dealt: Counter[str] = Counter()
    counts = Counter(row.label for row in rows)
    folds: dict[tuple[str, str], int] = {}
    for row in sorted(rows, key=lambda row: _shuffled(row, seed)):
        folds[row.label, row.text] = dealt[row.label] % FOLDS if counts[row.label] > 1 else -1
        dealt[row.label] += 1
    return [folds[row.label, row.text] for row in rows]


def _shuffled(row: LabelledText, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}\0{row.label}\0{row.text}".encode(errors="surrogatepass")).digest()


def _rows_digest(rows: Sequence[LabelledText]) -> str:
    """sha256 (hex) of the distinct rows; says which data a classifier was fitted on without showing it."""
    return hashlib.sha256(b"".join(_shuffled(row, 0) for row in rows)).hexdigest()


def _accuracy(held_out: Calibration) -> float | None:
    if not len(held_out.targets):
        return None
    return float((held_out.logits.argmax(axis=1) == held_out.targets).mean())


def _fallback_threshold(scores: Scalars, negative: np.ndarray) -> float:
    """Too few rows for the coverage asked for: what separates held-out rows best, else the smallest of their scores."""
    if negative.any() and not negative.all():
        return separating_threshold(scores[~negative], scores[negative])
    return float(scores[~negative].min()) if (~negative).any() else 0.0


def _self_threshold(classifier: Classifier, rows: Sequence[LabelledText]) -> float:
    own = [classifier.scores(row.text).score for row in rows if row.label != BASE]
    return SHARE_WITHOUT_CALIBRATION * float(np.min(own))
