"""The quadratic penalty on ΔW that EWC, online EWC, L2, SI and MAS share; they differ in where F comes from.

    penalty = weight · Ω(ΔW − ΔW*),    weight = λ_rel · T_old / T_new,    Ω in nats per supervised token

The penalty sees the product B·A alone: A → R·A with B → B·R⁻¹ changes neither the function nor Ω. At λ_rel = 1 it
is the Laplace approximation of the old tasks' log-likelihood on the scale of the new task's mean loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..batches import Batch
from ..fisher.importance import Importance
from ..lora import Factors, lora_layers, snapshot


class QuadraticPenalty:
    """weight · Ω of the move away from `reference`; a layer that `reference` lacks is held to ΔW* = 0, the base.

    `importance` and `reference` must be on the model's device. The weight may be changed between steps.
    """

    def __init__(
        self,
        name: str,
        importance: Importance,
        reference: Mapping[str, Factors],
        weight: float,
        adapter: str = "default",
    ) -> None:
        self._name = name
        self.importance = importance
        self.reference = reference
        self.weight = weight
        self._adapter = adapter
        self._prices = {
            name: curvature.around(reference[name]) if name in reference else curvature.omega
            for name, curvature in importance.layers.items()
        }

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        if self.weight == 0:
            return logits.new_zeros(())
        return self.weight * self._omega(model)

    def measure(self, model: Any) -> float:
        """Ω now, in nats per supervised token, without the weight."""
        with torch.no_grad():
            return float(self._omega(model))

    def _omega(self, model: Any) -> Tensor:
        deltas = {layer.name: layer.delta for layer in lora_layers(model, self._adapter)}
        return torch.stack([price(deltas[name]) for name, price in self._prices.items()]).sum()


def starting_point(model: Any, adapter: str = "default") -> Mapping[str, Factors]:
    """ΔW* of every layer where it is not 0: an adapter with B = 0 is the base, and costs no rank in the penalty."""
    return {name: factors for name, factors in snapshot(model, adapter).items() if bool(factors.up.any())}


def laplace_weight(relative: float, old_tokens: float, new_tokens: float) -> float:
    """λ_rel · T_old / T_new. Where nothing was learned before, and the base is the reference, T_old is T_new."""
    return relative * old_tokens / new_tokens
