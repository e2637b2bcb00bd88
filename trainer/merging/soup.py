"""Model soup: the mean of updates, best for checkpoints of one run or runs of one start.

Wortsman et al. 2022, "Model soups", arXiv 2203.05482:  ΔW = (1/n)·Σᵢ ΔWᵢ.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..lora import Factors
from .task_arithmetic import weighted_sum


def mean(deltas: Sequence[Factors]) -> Factors:
    """The mean of n matrices (out, in), exact, as factors of rank Σ kᵢ."""
    return weighted_sum(deltas, [1 / len(deltas)] * len(deltas))
