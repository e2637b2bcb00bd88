"""Stay near the base on the new data.

    L += λ_kl · (1/T) Σ_t KL(p_base(·|y_<t) ‖ p(·|y_<t))

over the T supervised positions, in nats; the base is the same model with its adapter disabled. This protects how the
base behaves near the new rows, and no earlier task: those the base never knew.

With `non_target` both distributions are renormalised over all tokens but the target (arXiv 2605.29498): how likely
the target becomes is then left to the cross entropy, and the rest of the distribution stays as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..batches import Batch
from ..distillation.divergence import supervised_logits, supervised_targets, token_kl, without_targets
from ..distillation.teacher import BaseTeacher, Teacher
from .recipe import Context, Recipe
from .settings import Kl


def build(settings: Kl, context: Context) -> Recipe:
    """Weight 0 brings nothing."""
    if not settings.weight:
        return Recipe()
    return Recipe(penalties=(NearBase(BaseTeacher(context.model), settings.weight, settings.non_target),))


@dataclass(frozen=True, slots=True)
class NearBase:
    """The KL from the base, by a second forward pass."""

    base: Teacher
    weight: float
    non_target: bool
    name: str = "kl"

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        theirs, ours = (supervised_logits(one, batch) for one in (self.base(batch), logits))
        if self.non_target:
            targets = supervised_targets(batch)
            theirs, ours = without_targets(theirs, targets), without_targets(ours, targets)
        return self.weight * token_kl(theirs, ours).mean()
