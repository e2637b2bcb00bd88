"""What EWC, online EWC and their controls share: which rows speak for the past, the Fisher there, what is reported.

The Laplace view (Kirkpatrick et al. 2017, arXiv:1612.00796; Huszár 2018, arXiv:1712.03847): the old tasks' loss of
T_old tokens is T_old · Ω near its optimum; against a mean over T_new tokens that is the weight T_old / T_new.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters.types import Json

from ..distillation.drift import Drift
from ..errors import ConfigInvalid
from ..fisher.estimate import choose_rows, estimate_fisher
from ..fisher.folder import load_importance, save_importance
from ..fisher.importance import Importance, Kind
from ..fisher.sums import Sums
from ..lora import LoraLayer
from ..past import PastTask
from .quadratic import QuadraticPenalty
from .recipe import Context
from .settings import Labels

DRIFT_ROWS = 32  # enough to see a drift to a tenth of itself, few enough to read in a moment


def last_task(context: Context, method: str) -> PastTask:
    """The rows that speak for the past: the last task's, or the anchors of a run that starts from the base.

    Raises `ConfigInvalid` where there are neither.
    """
    past = context.past
    if past.tasks:
        return past.tasks[-1]
    if past.anchors and past.start is None:
        return PastTask("anchors", past.anchors)
    found = "anchors and a start, but no past task" if past.anchors else "no past task and no anchors"
    raise ConfigInvalid(
        [f"{method} needs rows to protect, found {found}"],
        hint="give the last task's training rows with --past, or --anchor without --start",
    )


def measure_fisher(
    context: Context,
    method: str,
    task: PastTask,
    kind: Kind,
    labels: Labels,
    sequences: int,
    sums: Callable[[LoraLayer], Sums] | None = None,
) -> Importance:
    """The Fisher at the starting weights on up to `sequences` rows of `task`, measured once per run.

    Its `tokens` are all of the task's, or those of `of_the_base`.
    """
    kept = context.cache / method / task.name
    if not kept.is_dir():
        context.observer.say(f"{method}: measuring the Fisher on {task.name}")
        importance = estimate_fisher(
            context.model,
            choose_rows(task.examples, sequences, context.seed),
            kind,
            labels=labels,
            seed=context.seed,
            pad_token=context.loaded.pad_token,
            batch_tokens=context.batch_tokens,
            sums=sums,
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_importance(replace(importance, tokens=float(task.supervised)), kept)
    return of_the_base(load_importance(kept), context)


def of_the_base(importance: Importance, context: Context) -> Importance:
    """T_old := T_new for a run that starts from the base: there the rows were never learned, however many they are."""
    return importance if context.past.start else replace(importance, tokens=float(context.supervised))


@dataclass(frozen=True, slots=True)
class LaplaceFinish:
    """Reports the price Ω that the penalty saw beside the KL that was paid: the health of the approximation.

    Only the full quadratic form tends to the KL; a diagonal of a LoRA move reads several times low.
    """

    penalty: QuadraticPenalty
    drift: Drift
    drift_rows: str
    new_tokens: int

    def __call__(self, model: Any, folder: Path) -> Json:
        importance, omega, kl = self.penalty.importance, self.penalty.measure(model), self.drift.measure(model)
        return {
            "importance": importance.kind,
            "labels": importance.labels,
            "sequences": importance.sequences,
            "fisher_seconds": round(importance.seconds, 3),
            "old_tokens": importance.tokens,
            "new_tokens": self.new_tokens,
            "weight": self.penalty.weight,
            "omega": omega,
            "measured_kl": kl,
            "measured_on": self.drift_rows,
            "omega_per_kl": omega / kl if kl > 0 else None,
        }


def make_finish(context: Context, task: PastTask, penalty: QuadraticPenalty) -> LaplaceFinish:
    """Remembers the starting weights: call it while the model carries them. The KL is measured on a few of the
    anchors if there are any, else of the rows of `task`, where Ω was measured too.
    """
    name, rows = ("anchors", context.past.anchors) if context.past.anchors else (task.name, task.examples)
    chosen = choose_rows(rows, DRIFT_ROWS, context.seed)
    drift = Drift(context.model, chosen, context.loaded.pad_token, context.batch_tokens)
    return LaplaceFinish(penalty, drift, name, context.supervised)
