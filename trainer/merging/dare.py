"""DARE: drop elements of an update at random and rescale the rest.

Yu et al. 2023, "Language models are super Mario", arXiv 2311.03099:  ΔW̃ = m∘ΔW / (1 − p),  m ~ Bernoulli(1 − p).
The mean over masks is ΔW itself. The mask has full rank: little of its energy is left at a low rank.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def drop(delta: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """`delta` (out, in) with each element dropped with probability `share` < 1; the mean over draws is `delta`."""
    kept = torch.rand(delta.shape, generator=generator) >= share
    return delta * kept / (1 - share)


def mask_generator(seed: int, adapter: str, layer: str) -> torch.Generator:
    """The random stream of one layer of one adapter: it depends on no order and on no other layer."""
    digest = hashlib.sha256(f"dare {seed} {adapter} {layer}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
