"""TIES: trim, elect a sign, average those that agree with it.

Yadav et al. 2023, "TIES-Merging", arXiv 2306.01708. For τᵢ = wᵢ·ΔWᵢ, element by element:

    τ̂ᵢ = τᵢ where |τᵢ| is among the largest `density` of its matrix, else 0
    γ  = sign(Σᵢ τ̂ᵢ)
    ΔW = mean of the τ̂ᵢ with sign(τ̂ᵢ) = γ, over those alone; 0 where there is none

The paper's final λ is the common weight wᵢ = λ. It trims each task's parameters as one vector; here, as in PEFT, each
matrix is trimmed by itself, so that only one layer is ever dense.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def trimmed(matrix: Tensor, density: float) -> Tensor:
    """`matrix` with all but its largest `density` by magnitude set to 0; of equal magnitudes all are kept."""
    dropped = matrix.numel() - max(1, round(density * matrix.numel()))
    if dropped <= 0:
        return matrix
    smallest_kept = matrix.abs().flatten().kthvalue(dropped + 1).values
    return matrix * (matrix.abs() >= smallest_kept)


def merge_ties(deltas: Sequence[Tensor], density: float) -> Tensor:
    """ΔW (out, in) of the weighted updates `deltas`, each (out, in)."""
    kept = torch.stack([trimmed(delta, density) for delta in deltas])
    sign = kept.sum(dim=0).sign()
    agrees = (kept.sign() == sign) & (kept != 0)
    total = (kept * agrees).sum(dim=0)
    return total / agrees.sum(dim=0).clamp(min=1)
