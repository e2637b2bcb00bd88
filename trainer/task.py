"""What one run learns from and what judges it, with everything refused that would make the judgement worthless."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .choices import require_choices
from .config import TrainConfig
from .data import Dataset, halves, read_evaluation, read_training, refuse_shared
from .decisions import Decisions, read_decisions
from .errors import ConfigInvalid
from .model import LoadedBase

DEFAULT_MAX_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class Judges:
    """Data sets that judge an adapter: the target's and the guardrails'."""

    target: Dataset
    guardrails: tuple[Dataset, ...]

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        return (self.target, *self.guardrails)


@dataclass(frozen=True, slots=True)
class Task:
    """`selecting` chooses the checkpoint, `judging` becomes the evidence; they share no row.

    With `--select` the target's halves are two files; everything else is split by a hash of the row.
    """

    train: Dataset
    selecting: Judges
    judging: Judges
    decisions: Decisions | None


def read_task(config: TrainConfig, loaded: LoadedBase) -> Task:
    """Read every file of a run; raises for leaks, rows without decision, and what `trainer.data` refuses."""
    max_length = find_max_length(config.max_length, loaded)
    train = read_learning(config.data, loaded, max_length)

    def read(path: Path, name: str) -> Dataset:
        dataset = read_judging(path, name, loaded, max_length)
        refuse_shared(train, dataset)
        return dataset

    target = read(config.eval, "eval")
    if config.select:
        select_target = read(config.select, "select")
        refuse_shared(select_target, target)
    else:
        select_target, target = halves(target)
    split = [halves(read(file, file.stem)) for file in config.guardrails]
    selecting = Judges(select_target, tuple(first for first, _ in split))
    judging = Judges(target, tuple(second for _, second in split))
    require_choices(config.metric, [*selecting.datasets, *judging.datasets])
    decisions = require_decisions(config.decisions, selecting, judging)
    return Task(train, selecting, judging, decisions)


def read_learning(path: Path, loaded: LoadedBase, max_length: int) -> Dataset:
    """A file of training rows for `loaded`; raises what `read_training` does, and `BaseUnusable` for token ids that the
    base does not know.
    """
    dataset = read_training(path, loaded.tokenizer, loaded.end_tokens, max_length)
    loaded.require_tokens(path.name, dataset.examples)
    return dataset


def read_judging(path: Path, name: str, loaded: LoadedBase, max_length: int) -> Dataset:
    """A file that judges, for `loaded`; raises what `read_evaluation` does, and `BaseUnusable` as `read_learning`."""
    dataset = read_evaluation(path, name, loaded.tokenizer, loaded.end_tokens, max_length)
    loaded.require_tokens(path.name, dataset.examples)
    return dataset


def require_decisions(path: Path | None, *judges: Judges) -> Decisions | None:
    """The decisions in `path`, complete for every data set of `judges`."""
    if path is None:
        return None
    decisions = read_decisions(path)
    for dataset in (dataset for one in judges for dataset in one.datasets):
        decisions.require(dataset.rows, dataset.name)
    return decisions


def find_max_length(max_length: int | None, loaded: LoadedBase) -> int:
    """`max_length`, by default 1024 or the base's context; `ConfigInvalid` where it is over that context."""
    if max_length is None:
        return min(DEFAULT_MAX_LENGTH, loaded.context_length)
    if max_length > loaded.context_length:
        raise ConfigInvalid(
            [f"max_length: {max_length} tokens, the base attends to {loaded.context_length}"],
            hint="lower max_length",
        )
    return max_length
