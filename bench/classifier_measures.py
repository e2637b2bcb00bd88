"""What is reported of a classifier's answers: accuracy, abstention, calibration. Pure functions of arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from adapters.classifier_evidence import NEGATIVE_LABELS

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
BINS = 15
REDRAWS = 1_000


@dataclass(frozen=True, slots=True)
class Said:
    """Of one text: its label, the route on top and that one's probability, the decision's score and what it must reach.

    `own` is the probability of the text's label, `None` where no route is right or it is not known.
    """

    label: str
    top: str
    confidence: float
    score: float
    threshold: float
    own: float | None

    @property
    def negative(self) -> bool:
        return self.label in NEGATIVE_LABELS

    @property
    def kept(self) -> bool:
        """Whether a route answers; else the base does."""
        return self.score >= self.threshold

    @property
    def top_right(self) -> bool:
        return self.top == self.label

    @property
    def right(self) -> bool:
        """Whether the final decision is."""
        return not self.kept if self.negative else self.kept and self.top_right


def measures(said: Sequence[Said]) -> dict[str, float]:
    """Shares in [0, 1] and NLL in nats; a measure is absent where the rows it needs are.

    `top`: in-scope rows, top route before abstention. `final`: in-scope rows sent to their own route. `coverage`:
    in-scope rows not abstained. `oos_recall`: negatives kept on the base. `auroc`: negatives found by low scores.
    `accuracy`: final decision, all rows.
    """
    in_scope = [one for one in said if not one.negative]
    negatives = [one for one in said if one.negative]
    found: dict[str, float] = {}
    if said:
        found["accuracy"] = fmean(one.right for one in said)
    if in_scope:
        found |= _of_in_scope(in_scope)
    if negatives:
        found["oos_recall"] = fmean(one.right for one in negatives)
    if in_scope and negatives:
        found["auroc"] = auroc([one.score for one in in_scope], [one.score for one in negatives])
    return found


def mean_measures(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each measure that every fold has."""
    shared = set.intersection(*(set(fold) for fold in folds))
    return {name: fmean(fold[name] for fold in folds) for name in folds[0] if name in shared}


def auroc(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """The chance that a positive scores above a negative, ties counting half."""
    from sklearn.metrics import roc_auc_score

    is_positive = np.concatenate([np.ones(len(positives)), np.zeros(len(negatives))])
    return float(roc_auc_score(is_positive, np.concatenate([positives, negatives])))


def calibration_error(confidence: Numbers, right: Flags, bins: Callable[[Numbers], Numbers]) -> float:
    """Σ_bins (rows in bin / n) · |mean confidence − share right| (Naeini et al. 2015).

    `bins`: confidences to the bin of each.
    """
    own = bins(confidence).astype(np.int64)
    gaps = np.bincount(own, weights=confidence - right)
    return float(np.abs(gaps).sum() / len(confidence))


def equal_mass(confidence: Numbers) -> Numbers:
    """15 bins of as many rows each, in the order of confidence (Nixon et al. 2019)."""
    order = np.argsort(confidence, kind="stable")
    bins = np.empty(len(confidence))
    for number, rows in enumerate(np.array_split(order, min(BINS, len(order)))):
        bins[rows] = number
    return bins


def equal_width(confidence: Numbers) -> Numbers:
    """15 bins of [0, 1] of the same width (Guo et al. 2017)."""
    width: Numbers = np.minimum(np.floor(confidence * BINS), BINS - 1)
    return width


def calibration_floor(confidence: Numbers) -> tuple[float, float]:
    """(mean, 95th percentile) of the equal-mass error of labels redrawn from the confidences themselves.

    What a perfectly calibrated classifier with these confidences would be charged, by chance alone.
    """
    random = np.random.default_rng(0)
    drawn = [
        calibration_error(confidence, random.random(len(confidence)) < confidence, equal_mass) for _ in range(REDRAWS)
    ]
    return float(np.mean(drawn)), float(np.quantile(drawn, 0.95))


def _of_in_scope(rows: Sequence[Said]) -> dict[str, float]:
    confidence = np.array([one.confidence for one in rows])
    right = np.array([one.top_right for one in rows])
    floor, floor_95 = calibration_floor(confidence)
    found = {
        "top": float(right.mean()),
        "final": fmean(one.right for one in rows),
        "coverage": fmean(one.kept for one in rows),
        "ece": calibration_error(confidence, right, equal_mass),
        "ece_equal_width": calibration_error(confidence, right, equal_width),
        "ece_floor": floor,
        "ece_floor_95": floor_95,
    }
    own = [one.own for one in rows if one.own is not None]
    if len(own) == len(rows):
        found["nll"] = float(-np.log(np.maximum(own, 1e-12)).mean())
    return found
