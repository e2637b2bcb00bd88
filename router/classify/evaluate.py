"""How well a classifier decides on labelled rows. Rows labelled `base` or `oos` are negatives: no route is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.classifier_evidence import NEGATIVE_LABELS
from adapters.rows import LabelledText

from ..types import Scores
from .abstain import Flags
from .classifier import Classifier
from .features import Floats, Scalars

ECE_BINS = 15


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Shares in [0, 1]; `None` where the rows it needs are missing. `n` counts all rows.

    accuracy        final decision right, all rows
    macro_recall    mean of the recalls of the routes that occur and, where there are negatives, of the base
    adapter_recall  in-scope rows sent to their own route (abstained = miss)
    base_recall     negatives kept on the base
    oos_auroc, oos_aupr   the decision's score, negatives being the positive class
    fpr95           share of in-scope rows flagged where at least 95 % of the negatives are
    ece             in-scope rows, top route before abstention, 15 bins of equal mass
    coverage        in-scope rows not abstained, right or wrong
    """

    accuracy: float | None
    macro_recall: float | None
    adapter_recall: float | None
    base_recall: float | None
    oos_auroc: float | None
    oos_aupr: float | None
    fpr95: float | None
    ece: float | None
    coverage: float | None
    n: int


def evaluate(classifier: Classifier, rows: Sequence[LabelledText], vectors: Floats | None = None) -> Evaluation:
    """`evaluate_scores` of what `classifier` says of each row's text; `vectors` (rows, dimension) of its encoder."""
    each = [None] * len(rows) if vectors is None else vectors
    found = [classifier.scores(row.text, vector) for row, vector in zip(rows, each, strict=True)]
    return evaluate_scores(found, [row.label for row in rows])


def evaluate_scores(found: Sequence[Scores], labels: Sequence[str]) -> Evaluation:
    """`found[i]` was said of a text whose label is `labels[i]`."""
    wanted = np.array(["base" if label in NEGATIVE_LABELS else label for label in labels], dtype=object)
    negative = wanted == "base"
    abstained = np.array([scores.abstains for scores in found], dtype=bool)
    top_right = np.array([scores.route for scores in found], dtype=object) == wanted
    right = np.where(negative, abstained, top_right & ~abstained).astype(bool)
    score = np.array([scores.score for scores in found], dtype=np.float64)
    confidence = np.array([scores.confidence for scores in found], dtype=np.float64)
    auroc, aupr, fpr95 = _detection(score[~negative], score[negative])
    recalls = [_mean(right[wanted == label]) for label in sorted(set(wanted))]
    return Evaluation(
        accuracy=_mean(right),
        macro_recall=_mean(np.array(recalls)),
        adapter_recall=_mean(right[~negative]),
        base_recall=_mean(right[negative]),
        oos_auroc=auroc,
        oos_aupr=aupr,
        fpr95=fpr95,
        ece=expected_calibration_error(confidence[~negative], top_right[~negative]),
        coverage=_mean(~abstained[~negative]),
        n=len(found),
    )


def expected_calibration_error(confidence: Scalars, right: Flags, bins: int = ECE_BINS) -> float | None:
    """Σ_bins (rows in bin / n) · |mean confidence − share right|, bins of equal mass (Nixon et al. 2019)."""
    if not len(confidence):
        return None
    order = np.argsort(confidence, kind="stable")
    gaps = [
        len(rows) * abs(confidence[rows].mean() - right[rows].mean())
        for rows in np.array_split(order, min(bins, len(order)))
    ]
    return float(sum(gaps) / len(confidence))


def _detection(in_scope: Scalars, negatives: Scalars) -> tuple[float | None, float | None, float | None]:
    """AUROC, average precision and FPR at 95 % recall of finding the negatives by their low scores."""
    if not len(in_scope) or not len(negatives):
        return None, None, None
    from sklearn.metrics import average_precision_score, roc_auc_score

    is_negative = np.concatenate([np.zeros(len(in_scope)), np.ones(len(negatives))])
    suspicion = -np.concatenate([in_scope, negatives])
    enough = np.sort(negatives)[int(np.ceil(round(0.95 * len(negatives), 9))) - 1]
    return (
        float(roc_auc_score(is_negative, suspicion)),
        float(average_precision_score(is_negative, suspicion)),
        float((in_scope <= enough).mean()),
    )


def _mean(values: npt.NDArray[np.generic]) -> float | None:
    return float(np.mean(values.astype(np.float64))) if len(values) else None
