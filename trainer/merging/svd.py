"""Back to a rank that engines load: the nearest matrix of rank r, and what of the energy it leaves out.

Eckart & Young 1936. For ΔW = Σᵢ σᵢ·uᵢvᵢᵀ with σ falling, keep i ≤ r; energy lost = 1 − Σ_{i≤r} σᵢ² / Σ σᵢ².
Thin factors U (out, k), V (k, in) are never multiplied out: with U = Q₁R₁ and Vᵀ = Q₂R₂ only R₁R₂ᵀ (k, k) is
decomposed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..lora import Factors


@dataclass(frozen=True, slots=True)
class Truncated:
    """A matrix of rank ≤ r, each √σ on both factors, and the share of the energy Σσ² that it leaves out."""

    factors: Factors
    lost: float


def truncate(delta: Factors, rank: int) -> Truncated:
    """The nearest matrix of rank ≤ `rank`; factors that are thin enough come back as they are, with nothing lost."""
    if delta.up.shape[1] <= rank:
        return Truncated(delta, 0.0)
    left, upper = torch.linalg.qr(delta.up.double())
    right, lower = torch.linalg.qr(delta.down.double().T)
    found = truncate_dense(upper @ lower.T, rank)
    return Truncated(
        Factors((left @ found.factors.up).float(), (found.factors.down @ right.T).float()),
        found.lost,
    )


def truncate_dense(matrix: Tensor, rank: int) -> Truncated:
    """The nearest matrix of rank ≤ `rank` to `matrix` (out, in), in its dtype; costs a full decomposition: seconds at
    2,000 × 2,000, minutes beyond.
    """
    u, sigma, v = torch.linalg.svd(matrix, full_matrices=False)
    energies, root = sigma.double().square(), sigma[:rank].sqrt()
    total = float(energies.sum())
    lost = float(energies[rank:].sum()) / total if total else 0.0
    return Truncated(Factors((u[:, :rank] * root).contiguous(), (root[:, None] * v[:rank]).contiguous()), lost)
