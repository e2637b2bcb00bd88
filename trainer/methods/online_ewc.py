"""Online EWC: one penalty around the latest optimum, with the Fisher of every task so far.

    F_cum = Σ_i γ^(t−i) T_i F_i / Σ_i γ^(t−i) T_i,    T_old = Σ_i γ^(t−i) T_i

Schwarz et al. 2018, arXiv:1805.06370, section 3.2, in the reading of Huszár 2018, arXiv:1712.03847: penalties
around every earlier optimum count the earlier tasks again and again. With the full curvature of quadratic tasks,
λ_rel = 1 and γ = 1 this is the joint optimum exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any

from adapters.types import Json

from ..fisher.folder import load_importance, save_importance
from ..fisher.importance import Importance, fold
from .laplace import LaplaceFinish, make_finish, measure_fisher, of_the_base
from .quadratic import QuadraticPenalty, laplace_weight, starting_point
from .recipe import Context, Recipe
from .settings import OnlineEwc

NAME = "online_ewc"
_KEPT = "importance"


def build(settings: OnlineEwc, context: Context) -> Recipe:
    """A first task has nothing to protect and gets no penalty. Raises `ConfigInvalid` where the earlier stages' Fisher
    is of another kind, other labels or other layers, `CheckpointInvalid` where it cannot be read.
    """
    if not context.past.tasks:
        context.observer.say(f"{NAME}: a first task, nothing to protect")
        return Recipe()
    importance = cumulative(settings, context)
    weight = laplace_weight(settings.weight, importance.tokens, context.supervised)
    penalty = QuadraticPenalty(NAME, importance.to(context.model.device), starting_point(context.model), weight)
    report = make_finish(context, context.past.tasks[-1], penalty)
    return Recipe((penalty,), finish={NAME: _Finish(report, importance)})


def cumulative(settings: OnlineEwc, context: Context) -> Importance:
    """F_cum with T_old as its tokens: what the last stage left, and the last task's Fisher at the start.

    Where the last stage left nothing, every past task is measured at the start, whose optimum it is then.
    """
    left = context.past.left_by(NAME)
    known = [load_importance(left / _KEPT)] if left else []
    tasks = context.past.tasks[-1:] if known else context.past.tasks
    measured = [
        measure_fisher(context, NAME, task, settings.importance, settings.labels, settings.sequences) for task in tasks
    ]
    return of_the_base(reduce(partial(fold, gamma=settings.gamma), [*known, *measured]), context)


@dataclass(frozen=True, slots=True)
class _Finish:
    report: LaplaceFinish
    importance: Importance

    def __call__(self, model: Any, folder: Path) -> Json:
        save_importance(self.importance, folder / _KEPT)
        return self.report(model, folder)
