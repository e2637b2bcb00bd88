"""The training loop. What research varies, the objective, the batch source and hooks, comes in as arguments."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn.utils import clip_grad_norm_

from .batches import Batch, BatchSource
from .errors import Diverged
from .machine import Machine
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
        """The parameters have moved. May read gradients and parameters; leaves both as they are. What it computes is
        in float32, as before the first step, whatever the run's precision.
        """


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
    seed: int | None = None,
    machine: Machine | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[StepReport]:
    """Train until the budget is used up, one report per optimiser step, starting after `step`, `seconds` and `tokens`.

    Between two reports model, optimizer and batches are consistent and may be saved; time spent by the consumer
    there is not counted. With `seed` the dropout of a micro-batch depends on it, the step and the micro-batch's
    number alone: on no earlier draw and on no number of processes. Raises `Diverged` before a step whose loss or
    gradient is not finite is taken, and `NoSupervisedTokens`.
    """
    machine = machine or Machine()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    while (progress := budget.progress(step, seconds, tokens)) < 1.0:
        started = clock()
        model.train()
        micro_batches = [batches.next().to(parameters[0].device) for _ in range(accumulation)]
        rate = learning_rate.at(progress, step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        draws = None if seed is None else f"{seed}/{step}"
        with machine.computing(model):
            loss, parts = accumulate(model, micro_batches, objective, machine, draws)
            machine.join_gradients(parameters, optimizer)
            _draw_anew(draws, "hooks")
            for hook in hooks:
                hook.before_step(model, micro_batches)
            norm = float(clip_grad_norm_(parameters, grad_clip, foreach=True))
            _require_finite(step + 1, loss, norm, machine)
            machine.step(optimizer)
        for hook in hooks:
            hook.after_step(model)
        step, seconds = step + 1, seconds + machine.from_main(clock() - started)
        read = sum(batch.tokens for batch in micro_batches)
        tokens += read
        yield StepReport(step, loss, parts, read, norm, rate, seconds, budget.progress(step, seconds, tokens))


def accumulate(
    model: Any,
    micro_batches: Sequence[Batch],
    objective: Objective,
    machine: Machine | None = None,
    draws: str | None = None,
) -> tuple[float, dict[str, float]]:
    """Add the gradient of Σ_m (T_m / Σ T_m) · L_m to the parameters; return that loss and its parts.

    Of several processes each adds its own micro-batches' terms; the loss and its parts are the whole step's.
    """
    machine = machine or Machine()
    supervised = sum(batch.supervised for batch in micro_batches)
    total, parts = 0.0, dict[str, float]()
    for number, batch in machine.deal(micro_batches):
        _draw_anew(draws, number)
        loss = objective(model, batch)
        share = batch.supervised / supervised
        machine.backward(loss.total * share)
        total += float(loss.total.detach()) * share
        for name, value in loss.parts.items():
            parts[name] = parts.get(name, 0.0) + value * share
    total, *values = machine.sum([total, *parts.values()])
    return total, dict(zip(parts, values, strict=True))


def _draw_anew(draws: str | None, what: int | str) -> None:
    if draws is not None:
        digest = hashlib.sha256(f"{draws}/{what}".encode()).digest()
        torch.manual_seed(int.from_bytes(digest[:7], "big"))


def _require_finite(step: int, loss: float, norm: float, machine: Machine) -> None:
    """An overflowing gradient is no failure in float16 until its scale is as small as it can be."""
    if not (math.isfinite(loss) and (math.isfinite(norm) or machine.may_overflow)):
        raise Diverged(
            f"step {step}: loss {loss}, gradient norm {norm}: the run diverged",
            hint="lower the learning rate or raise the warm-up; the last checkpoint is kept",
        )
