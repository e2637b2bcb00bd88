"""What the tests of the trainer's methods share: a context to build in, short trainings, and an exact resume."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.trainer_base import colour_rows, encoded, lora_model, make_trainable_base, varied_rows
from trainer.batches import ShuffledBatches, collate
from trainer.checkpoint import Position, restore_checkpoint, save_checkpoint
from trainer.data import Encoded
from trainer.loop import train
from trainer.lora import lora_layers
from trainer.methods.recipe import Context, Recipe
from trainer.objective import Objective
from trainer.past import Past, PastTask
from trainer.schedule import Budget, LearningRate

STEPS = 6


class Silent:
    """An observer that nobody listens to."""

    stop_requested = False

    def say(self, text: str) -> None:
        """Nothing."""

    def advance(self, what: str, done: float, total: float, note: str = "") -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class Workshop:
    """A tiny base on disk and rows to learn; every `context` is a fresh, equal model about to be trained."""

    folder: Path

    def context(self, *, effect: float = 0.05, **changes: Any) -> Context:
        loaded, model = lora_model(self.folder / "tiny", effect=effect)
        cache = self.folder / "cache"
        cache.mkdir(exist_ok=True)
        examples = tuple(encoded(loaded, colour_rows(24)))
        made = Context(loaded, model, examples, Past(), frozenset(), 3, 128, cache, Silent())
        return replace(made, **changes)

    def past(self, rows: int = 12, tasks: int = 1) -> Past:
        loaded = self.context().loaded
        examples = encoded(loaded, varied_rows(rows * tasks))
        return Past(
            tuple(
                PastTask(f"task {number}", tuple(examples[number * rows : (number + 1) * rows]))
                for number in range(tasks)
            )
        )


def make_workshop(folder: Path) -> Workshop:
    torch.set_num_threads(1)
    make_trainable_base(folder / "tiny")
    return Workshop(folder)


def train_steps(
    context: Context,
    recipe: Recipe,
    steps: int = STEPS,
    *,
    states: Path | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    accumulation: int = 2,
) -> list[float]:
    """Train as a run does, from the state in `states` if there is one, and leave the new one there; the losses."""
    model = context.model
    batches = ShuffledBatches(
        context.examples, batch_tokens=context.batch_tokens, seed=context.seed, pad_token=context.loaded.pad_token
    )
    used = optimizer or torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.02)
    before = restore_checkpoint(states, model, used, batches, recipe.stateful) if states else None
    reports = train(
        model,
        batches,
        Objective(recipe.penalties),
        used,
        budget=Budget(steps),
        learning_rate=LearningRate(0.02, "constant", 0.0),
        accumulation=accumulation,
        hooks=recipe.hooks,
        machine=context.machine,
        step=before.step if before else 0,
    )
    losses = [report.loss for report in reports]
    if states:
        save_checkpoint(states, model, used, batches, Position(steps), "tiny", recipe.stateful)
    return losses


def add_dropout(model: Any) -> None:
    """Half of every adapter's inputs is dropped in training mode."""
    for layer in lora_layers(model):
        layer.module.lora_dropout["default"] = torch.nn.Dropout(0.5).train(layer.module.training)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}


def same(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    """Bit for bit."""
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def assert_exact_resume(
    context: Callable[[], Context], build: Callable[[Context], Recipe], folder: Path
) -> tuple[tuple[Context, Recipe], tuple[Context, Recipe]]:
    """Half of the steps, everything built again from nothing, the other half: the weights are the uninterrupted
    run's, bit for bit. Returns both ends.
    """
    whole = context()
    recipe = build(whole)
    train_steps(whole, recipe)
    first = context()
    train_steps(first, build(first), STEPS // 2, states=folder)
    second = context()
    again = build(second)
    train_steps(second, again, states=folder)
    assert same(weights(whole.model), weights(second.model))
    return (whole, recipe), (second, again)


def assert_quiet(context: Context, build: Callable[[Context], Recipe]) -> Recipe:
    """Building draws nothing from torch's generator and leaves weights, gradients and modes as they were."""
    before, random = weights(context.model), torch.get_rng_state()
    modes = [module.training for module in context.model.modules()]
    recipe = build(context)
    assert same(before, weights(context.model))
    assert torch.equal(random, torch.get_rng_state())
    assert modes == [module.training for module in context.model.modules()]
    assert all(one.grad is None for one in context.model.parameters())
    return recipe


def nll(context: Context, examples: Sequence[Encoded]) -> float:
    """Mean nats per supervised token."""
    with torch.no_grad():
        return float(Objective()(context.model, collate(examples, context.loaded.pad_token)).total)
