"""What a method may bring to a run, and what it may know when it is built.

A method is a file in this folder named as its settings' `method`, with one function:

    def build(settings: <its settings>, context: Context) -> Recipe

The loop knows nothing of methods: it gets penalties, a batch source and hooks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from adapters.types import Json

from ..batches import BatchSource
from ..data import Encoded
from ..errors import LeakFound
from ..loop import Hook
from ..machine import Machine
from ..model import LoadedBase
from ..objective import Penalty
from ..observer import Observer
from ..past import Past

Rewrite = Callable[[Sequence[Encoded]], Sequence[Encoded]]
Wrap = Callable[[BatchSource], BatchSource]


@dataclass(frozen=True, slots=True)
class Context:
    """A run just before its first step. `model` carries the starting weights, on their device, adapter `default`.

    `judged` holds the digests of every row that any evaluation of the run reads: none of them may be learned from.
    `cache` is a folder that lasts as long as the run and is empty when it begins: put costly things there, so that a
    resumed run does not pay again. `supervised` is T_new, the unique supervised tokens of `examples`.
    """

    loaded: LoadedBase
    model: Any
    examples: tuple[Encoded, ...]
    past: Past
    judged: frozenset[str]
    seed: int
    batch_tokens: int
    cache: Path
    observer: Observer
    machine: Machine = field(default_factory=Machine)

    @property
    def supervised(self) -> int:
        return sum(example.supervised for example in self.examples)

    def refuse_judged(self, rows: Sequence[Encoded], method: str, what: str) -> None:
        """Raise `LeakFound` where an evaluation of the run reads one of `rows`, which `method` calls `what`."""
        leaked = sum(row.row in self.judged for row in rows)
        if leaked:
            raise LeakFound(
                f"{method}: {leaked} of {len(rows)} {what} are also read by an evaluation",
                hint="take them out of one of the two files",
            )


@runtime_checkable
class Stateful(Protocol):
    """A penalty, hook or method that changes while a run lasts, and goes on exactly where it was."""

    def state(self) -> Mapping[str, Any]:
        """Tensors, numbers, strings, and lists and dicts of them: what `torch.load(weights_only=True)` reads."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go to `state`."""


@runtime_checkable
class Averaged(Protocol):
    """A hook that keeps an average of the weights: what is kept and judged in place of the latest ones."""

    def averaged(self, model: Any) -> AbstractContextManager[None]:
        """While it lasts `model` carries the averaged weights; afterwards its own again, bit for bit."""


class Finish(Protocol):
    """What a method does when the run is over and the weights to keep are known, before they are judged."""

    def __call__(self, model: Any, folder: Path) -> Json:
        """Leave in `folder` (which exists) what a later stage needs; return what run.json should say: plain numbers
        and words, costs in seconds. `model` carries the weights that are kept, from which a later stage starts: an
        earlier checkpoint's or an average, and not always those of the last step.
        """


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one method, or several, bring to a run.

    `rewrite` changes the training rows before they are batched, `wrap` the batch source around them; both in order.
    `finish` is called by name of the method. Building draws nothing from torch's global generator and leaves model
    parameters, gradients and mode as they were: a method of weight 0 changes no bit of the run. Of several processes
    the main one builds first, alone: a method that builds waits for no other process.
    """

    penalties: tuple[Penalty, ...] = ()
    hooks: tuple[Hook, ...] = ()
    rewrite: tuple[Rewrite, ...] = ()
    wrap: tuple[Wrap, ...] = ()
    finish: Mapping[str, Finish] = field(default_factory=dict)

    def plus(self, other: Recipe) -> Recipe:
        """Both, this one first."""
        return Recipe(
            (*self.penalties, *other.penalties),
            (*self.hooks, *other.hooks),
            (*self.rewrite, *other.rewrite),
            (*self.wrap, *other.wrap),
            {**self.finish, **other.finish},
        )

    @property
    def stateful(self) -> tuple[Stateful, ...]:
        """Its parts that must be saved with a checkpoint, each once, in a fixed order."""
        parts = {id(part): part for part in (*self.penalties, *self.hooks) if isinstance(part, Stateful)}
        return tuple(parts.values())
