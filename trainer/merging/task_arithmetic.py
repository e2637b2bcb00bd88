"""Task arithmetic: a weighted sum of updates; a negative weight forgets.

Ilharco et al. 2022, "Editing models with task arithmetic", arXiv 2212.04089:  ΔW = Σᵢ wᵢ·ΔWᵢ.
Adding A's and B's apart would give Σᵢⱼ BᵢAⱼ, another function. Concatenation is exact, and ranks add up:

    Σᵢ wᵢ·BᵢAᵢ = [w₁B₁ … wₙBₙ]·[A₁; …; Aₙ]
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..lora import Factors


def weighted_sum(deltas: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """Σᵢ wᵢ·ΔWᵢ as factors (out, Σ kᵢ) and (Σ kᵢ, in). An update of weight 0 takes no rank."""
    used = [(delta, weight) for delta, weight in zip(deltas, weights, strict=True) if weight] or [
        (Factors(deltas[0].up[:, :0], deltas[0].down[:0]), 0.0)
    ]
    return Factors(
        torch.cat([delta.up * weight for delta, weight in used], dim=1),
        torch.cat([delta.down for delta, _ in used], dim=0),
    )
