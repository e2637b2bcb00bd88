"""The training of one run, from its latest saved state to the end of its budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from adapters.types import Json

from .batches import BatchSource, ShuffledBatches
from .checkpoint import Position, restore_checkpoint, save_checkpoint
from .config import TrainConfig
from .data import Encoded
from .folder import RunFolder
from .loop import StepReport, train
from .methods.recipe import Recipe
from .model import LoadedBase
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

    def run(self, keep: Callable[[int], None], reached: Callable[[Position], None]) -> Position:
        """Train to the end of the budget. At each of the run's evenly spaced points the last of which is its end,
        `keep` is called with the step, then the state is saved, then `reached` is called.

        Raises `Interrupted` where the observer asks to stop; the same call later goes on from there, and the result
        is the same, bit for bit on a CPU.
        """
        config, recipe, parts = self.config, self.recipe, self.recipe.stateful
        batches, budget = self._batches()
        optimizer = make_optimizer(self.model, config)
        position = restore_checkpoint(self.folder.states, self.model, optimizer, batches, parts) or Position()
        if position.step:
            self.observer.say(f"going on from step {position.step}")
        reports = train(
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
        )
        saved = time.monotonic()
        for report in reports:
            due = passes_point(budget, position, report, config.checkpoints)
            position = advanced(position, report, due)
            if due:
                keep(report.step)
            stopping = self.observer.stop_requested
            if due or stopping or time.monotonic() - saved > SAVE_EVERY_SECONDS:
                base_id = self.loaded.base.id
                save_checkpoint(self.folder.states, self.model, optimizer, batches, position, base_id, parts)
                saved = time.monotonic()
            if stopping:
                raise interrupted(f"at step {report.step}")
            note = f"loss {report.loss:.3f}, {position.tokens / position.seconds:,.0f} tokens/s"
            self.observer.advance("training", report.progress, 1.0, note)
            if due:
                reached(position)
        return position

    def finish_methods(self) -> dict[str, Json]:
        """What each method found; what it leaves for later stages lies in the run's folder then."""
        found = {}
        for name, finish in self.recipe.finish.items():
            left = self.folder.methods / name
            left.mkdir(parents=True, exist_ok=True)
            found[name] = finish(self.model, left)
            if not any(left.iterdir()):
                left.rmdir()
        return found

    def _batches(self) -> tuple[BatchSource, Budget]:
        config, examples = self.config, self.examples
        for rewrite in self.recipe.rewrite:
            examples = tuple(rewrite(examples))
        plain = ShuffledBatches(
            examples, batch_tokens=config.batch_tokens, seed=config.seed, pad_token=self.loaded.pad_token
        )
        batches: BatchSource = plain
        for wrap in self.recipe.wrap:
            batches = wrap(batches)
        return batches, make_budget(config, plain.per_epoch)


def make_budget(config: TrainConfig, per_epoch: int) -> Budget:
    steps = max(1, math.ceil(config.epochs * per_epoch / config.accumulation))
    return Budget(min(steps, config.max_steps or steps), config.max_seconds, config.max_tokens)


def make_optimizer(model: Any, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


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
