"""WiSE-FT: part of the way from the base to the adapted model.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", arXiv 2109.01903:  W(w) = W₀ + w·ΔW.
For LoRA the interpolation of weights is exact: w goes on B and nothing else changes. w in [0, 1] interpolates,
w > 1 goes beyond the adapter, w < 0 away from it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from ..lora import lora_layers


def scaled(b: Tensor, weight: float) -> Tensor:
    """w·B, (out, rank); the same bits for w = 1."""
    return b * weight


@contextlib.contextmanager
def rescaled(model: Any, weight: float, adapter: str = "default") -> Iterator[None]:
    """The PEFT model answers as W₀ + w·ΔW while this lasts; no weight is rewritten."""
    layers = lora_layers(model, adapter)
    try:
        for layer in layers:
            layer.module.scaling[adapter] = layer.scale * weight
        yield
    finally:
        for layer in layers:
            layer.module.scaling[adapter] = layer.scale
