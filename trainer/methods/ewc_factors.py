"""Control: diagonal EWC on A and B apart, as most published code has it. Known to be wrong, kept to be compared with.

    L + λ_rel · (T_old / T_new) · ½ (Σ F_A ∘ (A − A*)² + Σ F_B ∘ (B − B*)²)

A → R·A with B → B·R⁻¹ leaves the function as it is and is charged all the same; and F_A is exactly 0 wherever B = 0,
so that around a fresh adapter A is free to turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..fisher.sums import FactorSums
from ..lora import Factors, lora_layers
from .laplace import last_task, make_finish, measure_fisher
from .quadratic import QuadraticPenalty, laplace_weight
from .recipe import Context, Recipe
from .settings import EwcFactors

NAME = "ewc_factors"


def build(settings: EwcFactors, context: Context) -> Recipe:
    """Raises `ConfigInvalid` without rows to protect."""
    task = last_task(context, NAME)
    importance = measure_fisher(
        context, NAME, task, "diagonal", settings.labels, settings.sequences, sums=FactorSums
    ).to(context.model.device)
    weight = laplace_weight(settings.weight, importance.tokens, context.supervised)
    penalty = FactorPenalty(NAME, importance, factors_of(context.model), weight)
    return Recipe((penalty,), finish={NAME: make_finish(context, task, penalty)})


def factors_of(model: Any) -> Mapping[str, Factors]:
    """B as `up` and A as `down` of every layer, detached: not a product, and no scale in it."""
    return {layer.name: Factors(layer.b, layer.a).detached() for layer in lora_layers(model)}


class FactorPenalty(QuadraticPenalty):
    """The same penalty with A and B in place of ΔW; `reference` holds B* as `up` and A* as `down`."""

    def _omega(self, model: Any) -> Tensor:
        moves = {}
        for layer in lora_layers(model, self._adapter):
            start = self.reference[layer.name]
            identity = torch.eye(len(layer.a), device=layer.a.device)
            moves[f"{layer.name}.A"] = Factors(identity, layer.a - start.down)
            moves[f"{layer.name}.B"] = Factors(layer.b - start.up, identity)
        return self.importance.omega(moves)
