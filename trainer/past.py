"""What came before a run: what a method may protect, replay or imitate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from .config import TrainConfig
from .data import Dataset, Encoded, refuse_shared
from .folder import METHODS
from .model import LoadedBase
from .task import read_learning


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
    are PEFT folders of other tasks' own adapters. `left` is the folder in which the methods of the run that wrote
    `start` left what they know (`recipe.Finish`), one folder below it per method.
    """

    tasks: tuple[PastTask, ...] = ()
    anchors: tuple[Encoded, ...] = ()
    start: Path | None = None
    adapters: tuple[Path, ...] = ()
    left: Path | None = None

    def left_by(self, method: str) -> Path | None:
        """The folder in which `method` left what it knows; `None` where it left nothing."""
        folder = self.left / method if self.left else None
        return folder if folder and folder.is_dir() else None


def read_past(config: TrainConfig, loaded: LoadedBase, max_length: int, judged: tuple[Dataset, ...]) -> Past:
    """The files that `config` names; raises `LeakFound` for rows that an evaluation of the run reads."""

    def read(path: Path, name: str) -> tuple[Encoded, ...]:
        dataset = replace(read_learning(path, loaded, max_length), name=name)
        for one in judged:
            refuse_shared(dataset, one)
        return dataset.examples

    tasks = tuple(PastTask(file.stem, read(file, f"past {file.stem}")) for file in config.past)
    anchors = tuple(row for file in config.anchors for row in read(file, f"anchors {file.stem}"))
    return Past(tasks, anchors, config.start, config.adapters, left_beside(config.start))


def left_beside(start: Path | None) -> Path | None:
    """Where the methods of the run that wrote the adapter in `start` left what they know."""
    left = start.parent / METHODS if start else None
    return left if left and left.is_dir() else None
