"""The training of one run, from its latest saved state to the end of its budget."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapters.types import Json

from .batches import BatchSource, ShuffledBatches
from .checkpoint import Position, restore_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import Encoded
from .errors import ConfigInvalid
from .failures import told_clearly
from .folder import RunFolder
from .loop import StepReport, train
from .machine import Machine, find_machine
from .methods.recipe import Averaged, Recipe
from .model import LoadedBase, load_weights
from .objective import Objective
from .observer import Observer, interrupted
from .schedule import Budget, LearningRate

SAVE_EVERY_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Training:
    """What a run trains, on what, with which methods. `model` carries the starting weights."""

    config: TrainConfig
    folder: RunFolder
    loaded: LoadedBase
    model: Any
    examples: tuple[Encoded, ...]
    recipe: Recipe
    observer: Observer
    machine: Machine | None = None

    def run(self, keep: Callable[[int], None], reached: Callable[[Position], object]) -> Position:
        """Train to the end of the budget, or until `reached` returns something true. At each of the run's evenly
        spaced points the last of which is its end, `keep` is called with the step, then the state is saved, then
        `reached` is called; by the main process alone, and again where the run was interrupted in it. `keep` finds
        the averaged weights in the model where a method keeps an average; both may leave any weights there.

        Raises `Interrupted` where the observer asks to stop; the same call later goes on from there, and the result
        is the same, bit for bit on a CPU. Raises `OutOfMemory` and `DiskFull`; the latest saved state is kept.
        """
        machine = self.machine or find_machine(self.config.precision)
        require_deal(self.config.accumulation, machine.processes)
        with told_clearly():
            return self._run(machine, keep, reached)

    def _run(self, machine: Machine, keep: Callable[[int], None], reached: Callable[[Position], object]) -> Position:
        config = self.config
        batches, per_epoch = make_batches(config, self.examples, self.recipe, self.loaded.pad_token)
        budget = make_budget(config, per_epoch)
        optimizer = make_optimizer(self.model, config)
        parts = (*self.recipe.stateful, *machine.stateful)
        position = restore_checkpoint(self.folder.states, self.model, optimizer, batches, parts) or Position()
        if position.step:
            self.observer.say(f"going on from step {position.step}")
        if position.at_point and self._has_enough(machine, reached, position):
            return position

        def save(position: Position) -> None:
            base_id = self.loaded.base.id
            save_checkpoint(self.folder.states, self.model, optimizer, batches, position, base_id, parts)

        saved = time.monotonic()
        for report in self._reports(machine, batches, budget, optimizer, position):
            machine.log(step_figures(report, report.seconds - position.seconds), report.step)
            due = passes_point(budget, position, report, config.checkpoints)
            position = advanced(position, report, due)
            late = time.monotonic() - saved > SAVE_EVERY_SECONDS
            stopping, late = machine.any(self.observer.stop_requested, late)
            if due:
                machine.on_main(partial(self._keep, keep, report.step))
            if due or stopping or late:
                machine.on_main(partial(save, position))
                saved = time.monotonic()
            if stopping:
                raise interrupted(f"at step {report.step}")
            note = f"loss {report.loss:.3f}, {position.tokens / position.seconds:,.0f} tokens/s"
            self.observer.advance("training", report.progress, 1.0, note)
            if due and self._has_enough(machine, reached, position):
                break
        return position

    def _reports(
        self,
        machine: Machine,
        batches: BatchSource,
        budget: Budget,
        optimizer: torch.optim.Optimizer,
        position: Position,
    ) -> Iterator[StepReport]:
        config, recipe = self.config, self.recipe
        if config.gradient_checkpointing:
            self.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        return train(
            self.model,
            batches,
            Objective(recipe.penalties),
            optimizer,
            budget=budget,
            learning_rate=LearningRate(config.lr, config.schedule, config.warmup),
            accumulation=config.accumulation,
            grad_clip=config.grad_clip,
            hooks=recipe.hooks,
            step=position.step,
            seconds=position.seconds,
            tokens=position.tokens,
            seed=config.seed,
            machine=machine,
        )

    def _keep(self, keep: Callable[[int], None], step: int) -> None:
        """Keep the weights that will be judged: an average, where a hook holds one."""
        with contextlib.ExitStack() as averages:
            for hook in self.recipe.hooks:
                if isinstance(hook, Averaged):
                    averages.enter_context(hook.averaged(self.model))
            keep(step)

    def _has_enough(self, machine: Machine, reached: Callable[[Position], object], position: Position) -> bool:
        with same_weights(self.model):
            return machine.on_main(lambda: reached(position))

    def finish_methods(self, kept: Path) -> dict[str, Json]:
        """What each method found, now that the adapter in `kept` is the run's result; the model carries it afterwards.
        What a method leaves for later stages lies in the run's folder then.
        """
        load_weights(self.model, kept)
        found = {}
        for name, finish in self.recipe.finish.items():
            left = self.folder.methods / name
            left.mkdir(parents=True, exist_ok=True)
            found[name] = finish(self.model, left)
            if not any(left.iterdir()):
                left.rmdir()
        return found


def make_batches(
    config: TrainConfig, examples: tuple[Encoded, ...], recipe: Recipe, pad_token: int
) -> tuple[BatchSource, int]:
    """The stream that a run reads, and how many micro-batches of its own rows an epoch has."""
    for rewrite in recipe.rewrite:
        examples = tuple(rewrite(examples))
    plain = ShuffledBatches(examples, batch_tokens=config.batch_tokens, seed=config.seed, pad_token=pad_token)
    batches: BatchSource = plain
    for wrap in recipe.wrap:
        batches = wrap(batches)
    return batches, plain.per_epoch


def make_budget(config: TrainConfig, per_epoch: int) -> Budget:
    steps = max(1, math.ceil(config.epochs * per_epoch / config.accumulation))
    return Budget(min(steps, config.max_steps or steps), config.max_seconds, config.max_tokens)


def make_optimizer(model: Any, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


@contextlib.contextmanager
def same_weights(model: Any) -> Iterator[None]:
    """Whatever is loaded into the adapter meanwhile, it carries its own weights again afterwards, bit for bit."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, own in zip(parameters, before, strict=True):
                parameter.copy_(own)


def require_deal(accumulation: int, processes: int) -> None:
    """Raise `ConfigInvalid` where the micro-batches of a step cannot be dealt evenly to the processes."""
    if accumulation % processes:
        raise ConfigInvalid(
            [f"accumulation: {accumulation} micro-batches a step cannot be dealt evenly to {processes} processes"],
            hint=f"set accumulation to a multiple of {processes}",
        )


def step_figures(report: StepReport, seconds: float) -> dict[str, float]:
    """What a tracker shows of one optimiser step that took `seconds`; losses in nats per supervised token."""
    figures = {f"loss/{name}": value for name, value in report.parts.items()}
    figures |= {"loss": report.loss, "learning_rate": report.learning_rate, "gradient_norm": report.gradient_norm}
    return figures | {"tokens_per_second": report.tokens / seconds}


def passes_point(budget: Budget, position: Position, report: StepReport, points: int) -> bool:
    """Whether the step of `report` passes one of the run's evenly spaced evaluation points."""
    before = budget.progress(position.step, position.seconds, position.tokens)
    return math.floor(report.progress * points) > math.floor(before * points)


def advanced(position: Position, report: StepReport, due: bool) -> Position:
    return replace(
        position,
        step=report.step,
        seconds=report.seconds,
        tokens=position.tokens + report.tokens,
        losses=(*position.losses, report.loss),
        candidates=(*position.candidates, report.step) if due else position.candidates,
    )
