"""Control: EWC with the Fisher replaced by its mean, one number for all layers.

    L + λ_rel · (T_old / T_new) · ½ f Σ_layers ‖ΔW − ΔW_start‖²_F,    f = trace of the diagonal Fisher / its entries

What EWC gains over this is what it gains from knowing which directions matter; the overall stiffness is the same.
"""

from __future__ import annotations

from ..fisher.importance import uniform
from .laplace import last_task, make_finish, measure_fisher
from .quadratic import QuadraticPenalty, laplace_weight, starting_point
from .recipe import Context, Recipe
from .settings import L2


def build(settings: L2, context: Context) -> Recipe:
    """Raises `ConfigInvalid` without rows to protect."""
    task = last_task(context, "l2")
    importance = uniform(measure_fisher(context, "l2", task, "diagonal", settings.labels, settings.sequences))
    weight = laplace_weight(settings.weight, importance.tokens, context.supervised)
    penalty = QuadraticPenalty("l2", importance.to(context.model.device), starting_point(context.model), weight)
    return Recipe((penalty,), finish={"l2": make_finish(context, task, penalty)})
