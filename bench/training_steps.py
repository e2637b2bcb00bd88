"""One arm of the trainer's cost benchmark, step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.batches import Batch, BatchSource
from trainer.loop import StepReport

from .training_arms import Arm, Seconds

WARM = 2  # steps that are not counted


@dataclass(frozen=True)
class Taken:
    """One timed step, in seconds per token, as `Seconds` has them; `remembered`: its rows are not the new task's."""

    counted: float
    wall: float
    tokens: int
    remembered: bool


class Watched:
    """A batch source whose latest batch can be looked at."""

    def __init__(self, inner: BatchSource) -> None:
        self._inner = inner
        self.latest: Batch | None = None

    def next(self) -> Batch:
        self.latest = self._inner.next()
        return self.latest

    def state(self) -> Mapping[str, int]:
        return self._inner.state()

    def restore(self, state: Mapping[str, int]) -> None:
        self._inner.restore(state)


class Runner:
    """One arm, step by step."""

    def __init__(self, arm: Arm) -> None:
        self._own = {example.row for example in arm.context.examples}
        self._source = Watched(arm.batches())
        self._steps: Iterator[StepReport] = arm.steps(self._source)

    def step(self) -> Taken:
        started = Seconds.now()
        report = next(self._steps)
        took = started.since()
        rows = self._source.latest.rows if self._source.latest else ()
        remembered = any(row not in self._own for row in rows)
        return Taken(took.counted / report.tokens, took.wall / report.tokens, report.tokens, remembered)
