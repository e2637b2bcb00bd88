"""The training loop. What research varies, the objective, the batch source and hooks, comes in as arguments."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.utils import clip_grad_norm_

from .batches import Batch, BatchSource
from .errors import Diverged
from .objective import Objective
from .schedule import Budget, LearningRate


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step. Losses in nats per supervised token; `tokens` without padding; `seconds` since the start."""

    step: int
    loss: float
    parts: Mapping[str, float]
    tokens: int
    gradient_norm: float
    learning_rate: float
    seconds: float
    progress: float


class Hook(Protocol):
    """Acts around an optimiser step, for methods that a term of the loss cannot express."""

    def before_step(self, model: Any, micro_batches: Sequence[Batch]) -> None:
        """The whole step's gradient is there, not yet clipped; it may be changed in place."""

    def after_step(self, model: Any) -> None:
        """The parameters have moved. May read gradients and parameters; leaves both as they are."""


def train(
    model: Any,
    batches: BatchSource,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    *,
    budget: Budget,
    learning_rate: LearningRate,
    accumulation: int = 1,
    grad_clip: float = 1.0,
    hooks: Sequence[Hook] = (),
    step: int = 0,
    seconds: float = 0.0,
    tokens: int = 0,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[StepReport]:
    """Train until the budget is used up, one report per optimiser step, starting after `step`, `seconds` and `tokens`.

    Between two reports model, optimizer and batches are consistent and may be saved; time spent by the consumer
    there is not counted. Raises `Diverged` before a step whose loss or gradient is not finite is taken, and
    `NoSupervisedTokens`.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    while (progress := budget.progress(step, seconds, tokens)) < 1.0:
        started = clock()
        model.train()
        micro_batches = [batches.next().to(parameters[0].device) for _ in range(accumulation)]
        rate = learning_rate.at(progress, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss, parts = accumulate(model, micro_batches, objective)
        for hook in hooks:
            hook.before_step(model, micro_batches)
        norm = float(clip_grad_norm_(parameters, grad_clip, foreach=True))
        _require_finite(step + 1, loss, norm)
        optimizer.step()
        for hook in hooks:
            hook.after_step(model)
        step, seconds = step + 1, seconds + clock() - started
        read = sum(batch.tokens for batch in micro_batches)
        tokens += read
        yield StepReport(step, loss, parts, read, norm, rate, seconds, budget.progress(step, seconds, tokens))


def accumulate(model: Any, micro_batches: list[Batch], objective: Objective) -> tuple[float, dict[str, float]]:
    """Add the gradient of Σ_m (T_m / Σ T_m) · L_m to the parameters; return that loss and its parts."""
    supervised = sum(batch.supervised for batch in micro_batches)
    total, parts = 0.0, dict[str, float]()
    for batch in micro_batches:
        loss = objective(model, batch)
        share = batch.supervised / supervised
        (loss.total * share).backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
        total += float(loss.total.detach()) * share
        for name, value in loss.parts.items():
            parts[name] = parts.get(name, 0.0) + value * share
    return total, parts


def _require_finite(step: int, loss: float, norm: float) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise Diverged(
            f"step {step}: loss {loss}, gradient norm {norm}: the run diverged",
            hint="lower the learning rate or raise the warm-up; the last checkpoint is kept",
        )
