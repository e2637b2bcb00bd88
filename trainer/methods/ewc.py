"""EWC on the product: one quadratic penalty around the start, with the Fisher of the last task.

    L + λ_rel · (T_old / T_new) · Ω(ΔW − ΔW_start),    Ω = ½ vec(D)ᵀ F vec(D) in nats per supervised token

Kirkpatrick et al. 2017, arXiv:1612.00796, with D = ΔW − ΔW* in place of A and B apart. With `budget` the weight
follows the KL that is measured on the anchors, by the rule of PPO's adaptive KL penalty (Schulman et al. 2017,
arXiv:1707.06347, section 4); never Ω, which underestimates it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..batches import Batch
from ..distillation.drift import Drift
from ..errors import ConfigInvalid
from .laplace import last_task, make_finish, measure_fisher
from .quadratic import QuadraticPenalty, laplace_weight, starting_point
from .recipe import Context, Recipe
from .settings import Ewc


def build(settings: Ewc, context: Context) -> Recipe:
    """Raises `ConfigInvalid` without rows to protect, and for a budget without anchors or with weight 0."""
    if settings.budget is not None and not (context.past.anchors and settings.weight):
        raise ConfigInvalid(
            ["ewc: a budget is kept by measuring on anchors and adapting a weight above 0"],
            hint="give --anchor FILE, and leave weight at 1",
        )
    task = last_task(context, "ewc")
    importance = measure_fisher(context, "ewc", task, settings.importance, settings.labels, settings.sequences)
    device = context.model.device
    weight = laplace_weight(settings.weight, importance.tokens, context.supervised)
    penalty = QuadraticPenalty("ewc", importance.to(device), starting_point(context.model), weight)
    finish = make_finish(context, task, penalty)
    hooks = () if settings.budget is None else (Budget(penalty, finish.drift, settings.budget),)
    return Recipe((penalty,), hooks, finish={"ewc": finish})


class Budget:
    """Keeps the measured KL near `budget`, nats per token: twice the weight above 1.5 budgets, half of it below ⅔.

    Looks every `EVERY` steps; the weight stays within `RANGE` times its start, so that the first steps, in which
    nothing has moved yet, cannot take it to 0.
    """

    EVERY = 5
    RANGE = (1e-3, 1e6)

    def __init__(self, penalty: QuadraticPenalty, drift: Drift, budget: float) -> None:
        self._penalty = penalty
        self._drift = drift
        self._budget = budget
        self._bounds = tuple(penalty.weight * factor for factor in self.RANGE)
        self._steps = 0

    def before_step(self, model: Any, micro_batches: Sequence[Batch]) -> None:
        """Nothing: the weight changes between steps."""

    def after_step(self, model: Any) -> None:
        self._steps += 1
        if self._steps % self.EVERY == 0:
            self._penalty.weight = self.adapted(self._drift.measure(model))

    def adapted(self, kl: float) -> float:
        """The weight after `kl` nats per token were measured."""
        factor = 2.0 if kl > 1.5 * self._budget else 0.5 if kl < self._budget / 1.5 else 1.0
        low, high = self._bounds
        return min(max(self._penalty.weight * factor, low), high)

    def state(self) -> Mapping[str, Any]:
        return {"steps": self._steps, "weight": self._penalty.weight}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._steps, self._penalty.weight = state["steps"], state["weight"]
