"""What a few seeds support: Student's t over paired differences, and Holm's correction over the arms."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.stats import t as student


@dataclass(frozen=True, slots=True)
class SeedInterval:
    """A mean over seeds with its two-sided interval; `lower`, `upper` and `p` are `None` for a single seed.

    `p` is the two-sided p value against a mean of 0.
    """

    mean: float
    lower: float | None
    upper: float | None
    p: float | None
    seeds: int


def t_interval(values: Sequence[float], confidence: float = 0.95) -> SeedInterval:
    """mean ± t(df = n − 1) · s / √n. For a comparison of arms, `values` are per-seed paired differences."""
    count, mean = len(values), fmean(values)
    if count < 2:
        return SeedInterval(mean, None, None, None, count)
    error = stdev(values) / math.sqrt(count)
    half = float(student.ppf((1 + confidence) / 2, count - 1)) * error
    p = float(2 * student.sf(abs(mean) / error, count - 1)) if error else float(mean == 0)
    return SeedInterval(mean, mean - half, mean + half, p, count)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p values adjusted for all comparisons at once (Holm 1979, Scand. J. Statist. 6): sort ascending, multiply the
    k-th (from 0) by m − k, keep them rising, cap at 1.
    """
    adjusted, highest = dict[str, float](), 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda one: (p_values[one], one))):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}
