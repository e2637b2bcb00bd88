"""A false-alarm rate kept over many looks, and exact one-sided tests of paired scores.

A spending function α*(t) says how much of α may be gone when the share t of the planned looks is done; look k of K
has α_k = α*(k/K) − α*((k−1)/K) to itself. Lan and DeMets (1983, Biometrika 70(3), 659–663) turn the α_k into
boundaries by the joint law of data that accumulate. Here every look measures the same items anew: looks are neither
independent nor sums of one another, so each is tested at its own α_k, and by the union bound

    P(any false alarm in K looks) ≤ Σ_k α_k = α

whatever the dependence between looks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm, permutation_test

Spending = Literal["pocock", "obrien-fleming"]
RESAMPLES = 19_999  # the least p-value that sign flips can show is 1 / (RESAMPLES + 1)


@dataclass(frozen=True, slots=True)
class Drop:
    """What one paired test found: `size` is the mean fall of the score, `p` its one-sided p-value.

    `pairs` were compared, of which `worse` fell and `better` rose.
    """

    pairs: int
    worse: int
    better: int
    size: float
    p: float


def spent(spending: Spending, alpha: float, share: float) -> float:
    """α*(share), the error rate that may be spent when `share` (0 to 1) of the looks is done; α*(1) = α.

    pocock:          α · ln(1 + (e − 1) t): about the same for every look
    obrien-fleming:  2 − 2 Φ(z_{1−α/2} / √t): nearly nothing for the early ones
    """
    if share <= 0:
        return 0.0
    if spending == "pocock":
        return alpha * math.log1p((math.e - 1) * share)
    return float(2 * norm.sf(norm.isf(alpha / 2) / math.sqrt(share)))


def look_alpha(spending: Spending, alpha: float, look: int, looks: int) -> float:
    """The significance level of look `look` (1 to `looks`); over all looks they add up to `alpha`."""
    if not 1 <= look <= looks:
        raise ValueError(f"look {look} of {looks} planned ones")
    return spent(spending, alpha, look / looks) - spent(spending, alpha, (look - 1) / looks)


def paired_drop(before: Sequence[float], now: Sequence[float], *, seed: int = 0) -> Drop:
    """Did scores fall? One-sided test of pairs: `before[i]` and `now[i]` are the same item's.

    Scores of 0 and 1: McNemar's exact test (1947, Psychometrika 12, 153–157), a binomial test of the discordant pairs.
    Others: the test of all sign flips of the differences (Fisher 1935), drawn at random with `seed` where there are
    more than `RESAMPLES`; of 0 and 1 it is McNemar's. Both are exact where the two scores of a pair could be swapped,
    which is what "nothing changed" means; a t-test is not at levels this small and with so many differences of 0.
    """
    differences = np.subtract(before, now, dtype=float)
    unequal = differences[differences != 0]
    worse, better = int((unequal > 0).sum()), int((unequal < 0).sum())
    size = float(differences.mean()) if len(differences) else 0.0
    if not len(unequal):
        p = 1.0
    elif np.all(np.abs(unequal) == 1):
        p = float(binomtest(worse, worse + better, 0.5, alternative="greater").pvalue)
    else:
        p = _flip_signs(unequal, seed)
    return Drop(len(differences), worse, better, size, p)


def _flip_signs(differences: NDArray[np.float64], seed: int) -> float:
    def total(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        return np.asarray(values.sum(axis=axis))

    found = permutation_test(
        (differences,),
        total,
        permutation_type="samples",
        alternative="greater",
        n_resamples=RESAMPLES,
        vectorized=True,
        batch=1000,
        rng=np.random.default_rng(seed),
    )
    return float(found.pvalue)
