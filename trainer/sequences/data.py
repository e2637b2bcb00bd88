"""The rows of a sequence: what every task teaches, what judges it, and where its rows would be sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..config import TrainConfig
from ..data import Dataset, halves, refuse_shared
from ..decisions import Decisions, read_decisions
from ..model import LoadedBase
from ..task import find_max_length, read_judging, read_learning
from .config import SequenceConfig, TaskPlan
from .stage import TaskData


@dataclass(frozen=True, slots=True)
class SequenceData:
    """Everything a sequence reads. `decisions[i]` holds after stage i + 1; empty where none were given."""

    tasks: tuple[TaskData, ...]
    guardrails: tuple[Dataset, ...]
    decisions: tuple[Decisions, ...]

    @property
    def judged(self) -> frozenset[str]:
        """Every row that any evaluation of the sequence reads."""
        datasets = (*(task.judged for task in self.tasks), *self.guardrails)
        return frozenset(row for dataset in datasets for row in dataset.rows)

    def routes(self, stage: int, dataset: Dataset) -> list[str | None] | None:
        """Where each row goes after stage `stage` (from 1): a route, or `None` for the base. `None` for all of them
        where some have no decision: those of tasks always have one, those of guardrails may.
        """
        known = self.decisions[stage - 1].routes if self.decisions else {}
        return [known[row] for row in dataset.rows] if all(row in known for row in dataset.rows) else None


def read_data(config: SequenceConfig, settings: TrainConfig, loaded: LoadedBase) -> SequenceData:
    """Read every file. Raises `LeakFound` where a judged row of any task also stands in any task's training rows or
    anchors, `DecisionsInvalid` where a judged row has no decision.
    """
    max_length = find_max_length(settings.max_length, loaded)

    def judging(path: Path, name: str) -> Dataset:
        return read_judging(path, name, loaded, max_length)

    tasks = tuple(_task(plan, config, loaded, max_length, judging) for plan in config.tasks)
    guardrails = tuple(first_rows(judging(file, file.stem), config.items) for file in config.guardrails)
    for one in tasks:
        for judged in (*(other.judged for other in tasks), *guardrails):
            refuse_shared(one.train, judged)
            refuse_shared(one.anchors, judged)
    return SequenceData(tasks, guardrails, _decisions(config, tasks))


def first_rows(dataset: Dataset, count: int | None) -> Dataset:
    return replace(dataset, examples=dataset.examples[:count])


def _task(
    plan: TaskPlan,
    config: SequenceConfig,
    loaded: LoadedBase,
    max_length: int,
    judging: Callable[[Path, str], Dataset],
) -> TaskData:
    train = read_learning(plan.data, loaded, max_length)
    dev = judging(plan.dev, f"{plan.name} dev")
    anchors, judged = halves(dev) if config.split == "dev" else (dev, judging(plan.eval, f"{plan.name} eval"))
    return TaskData(
        plan.name, plan.called, replace(train, name=f"{plan.name} data"), first_rows(judged, config.items), anchors
    )


def _decisions(config: SequenceConfig, tasks: Sequence[TaskData]) -> tuple[Decisions, ...]:
    if not config.decisions:
        return ()
    files: Mapping[Path, Decisions] = {file: read_decisions(file) for file in dict.fromkeys(config.decisions)}
    for decisions in files.values():
        for task in tasks:
            decisions.require(task.judged.rows, task.judged.name)
    stages = [config.decisions_at(stage) for stage in range(1, len(tasks) + 1)]
    return tuple(files[file] for file in stages if file is not None)
