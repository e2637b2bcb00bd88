"""ΔW of every adapted layer as two thin factors: the space in which methods measure, penalise and merge.

    ΔW = s·B·A,  A (rank, in),  B (out, rank),  s = α/rank, or α/√rank for rsLoRA

A and B by themselves mean nothing: B·R and R⁻¹·A are the same function for every invertible R.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Factors:
    """A matrix (out, in) of rank ≤ k as `up` (out, k) times `down` (k, in). The scale s is inside `up`."""

    up: Tensor
    down: Tensor

    @property
    def dense(self) -> Tensor:
        """The matrix itself, (out, in)."""
        return self.up @ self.down

    def detached(self) -> Factors:
        """A float32 copy without gradient, which later training does not touch."""
        return Factors(*(factor.detach().float().clone() for factor in (self.up, self.down)))

    def minus(self, other: Factors) -> Factors:
        """This matrix less `other`, exactly, by concatenation: rank ≤ the sum of both."""
        return Factors(torch.cat([self.up, -other.up], dim=1), torch.cat([self.down, other.down], dim=0))


@dataclass(frozen=True, slots=True)
class LoraLayer:
    """One adapted linear layer of a PEFT model. `module` maps (…, in) to (…, out); `weight` is frozen, (out, in)."""

    name: str
    module: Any
    a: Tensor
    b: Tensor
    scale: float

    @property
    def delta(self) -> Factors:
        """ΔW now, differentiable in A and B."""
        return Factors(self.scale * self.b, self.a)


def lora_layers(model: Any, adapter: str = "default") -> tuple[LoraLayer, ...]:
    """The layers that `adapter` changes, in the model's order; names as the base itself calls its layers."""
    return tuple(
        LoraLayer(
            name.removeprefix("base_model.model."),
            module,
            module.lora_A[adapter].weight,
            module.lora_B[adapter].weight,
            float(module.scaling[adapter]),
        )
        for name, module in model.named_modules()
        if hasattr(module, "lora_A") and adapter in module.lora_A
    )


def snapshot(model: Any, adapter: str = "default") -> Mapping[str, Factors]:
    """ΔW of every layer now, as detached float32 copies by layer name."""
    return {layer.name: layer.delta.detached() for layer in lora_layers(model, adapter)}
