"""What came before a run: what a method may protect, replay or imitate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .config import TrainConfig
from .data import Dataset, Encoded, read_training, refuse_shared
from .model import LoadedBase


@dataclass(frozen=True, slots=True)
class PastTask:
    """An earlier task's training rows."""

    name: str
    examples: tuple[Encoded, ...]

    @property
    def supervised(self) -> int:
        """Unique supervised tokens: the T of the Laplace weight; epochs and replay do not count."""
        return sum(example.supervised for example in self.examples)


@dataclass(frozen=True, slots=True)
class Past:
    """Everything a run knows of what came before it; empty for a first task.

    `tasks` in the order they were learned. `anchors` are inputs on which behaviour should stay as it is.
    `start` is the PEFT folder the run begins from and the reference to stay near; `None` is the base. `adapters`
    are PEFT folders of other tasks' own adapters. `stages` are the method states that earlier stages of the same
    sequence left behind (`methods.recipe.Method.finish`), oldest first.
    """

    tasks: tuple[PastTask, ...] = ()
    anchors: tuple[Encoded, ...] = ()
    start: Path | None = None
    adapters: tuple[Path, ...] = ()
    stages: tuple[Path, ...] = ()


def read_past(config: TrainConfig, loaded: LoadedBase, max_length: int, judged: tuple[Dataset, ...]) -> Past:
    """The files that `config` names; raises `LeakFound` for rows that an evaluation of the run reads."""

    def read(path: Path, name: str) -> tuple[Encoded, ...]:
        dataset = replace(read_training(path, loaded.tokenizer, loaded.end_tokens, max_length), name=name)
        for one in judged:
            refuse_shared(dataset, one)
        return dataset.examples

    tasks = tuple(PastTask(file.stem, read(file, f"past {file.stem}")) for file in config.past)
    anchors = read(config.anchors, "anchors") if config.anchors else ()
    return Past(tasks, anchors, config.start)
