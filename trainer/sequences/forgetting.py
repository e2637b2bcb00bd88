"""What a sequence of tasks left behind: pure numbers on R, without I/O.

R[i][j] is the score on task j after stage i, row 0 the base: T + 1 rows, T columns, on items that never change.
A row is `None` where that stage does not exist, as for joint training, which has only the base and row T.

Lopez-Paz and Ranzato 2017 (GEM, arXiv 1706.08840) give ACC, BWT and FWT; Chaudhry and others 2018
(arXiv 1801.10112) give forgetting. With tasks counted from 1, as there:

    ACC        = mean_j R[T][j]
    BWT        = mean_{j<T} (R[T][j] − R[j][j])
    forgetting = mean_{j<T} (max_{j≤l<T} R[l][j] − R[T][j])
    FWT        = mean_{j≥2} (R[j−1][j] − R[0][j])
    retention  = Σ_{j<T} R[T][j] / Σ_{j<T} R[j][j]
    learned    = mean_j R[j][j]

For a score of which less is better (target NLL, nats per token) every difference changes its sign, max becomes min and
the ratio is turned over: BWT > 0 is always a gain, forgetting > 0 always a loss, retention 1 always means nothing lost.
ACC and learned keep the score's own unit and direction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

Direction = Literal["higher", "lower"]
Row = Sequence[float]
Matrix = Sequence[Row | None]


@dataclass(frozen=True, slots=True)
class Forgetting:
    """The measures of one R. `None`: there is no such number, for one task or where the stages it needs do not exist.

    `retained_gain` is Σ_{j<T} (R[T][j] − R[0][j]) / Σ_{j<T} (R[j][j] − R[0][j]): the share kept of what was learned
    beyond the base; the same for both directions.
    """

    average: float
    learned: float | None
    backward_transfer: float | None
    forgetting: float | None
    forward_transfer: float | None
    retention: float | None
    retained_gain: float | None

    @property
    def values(self) -> Mapping[str, float | None]:
        """Every measure by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def measure(matrix: Matrix, direction: Direction) -> Forgetting:
    """Every measure of R, (T + 1) × T. Raises `ValueError` for another shape, or without base or last row."""
    tasks = _check(matrix)
    base, final = _row(matrix, 0), _row(matrix, tasks)
    average = fmean(final)
    stages = [row for row in matrix if row is not None]
    if len(stages) < len(matrix):
        return Forgetting(average, None, None, None, None, None, None)
    learned = [stages[task + 1][task] for task in range(tasks)]
    earlier = range(tasks - 1)
    if not earlier:
        return Forgetting(average, fmean(learned), None, None, None, None, None)
    sign = 1.0 if direction == "higher" else -1.0
    peaks = [max(sign * stages[stage][task] for stage in range(task + 1, tasks)) for task in earlier]
    kept, had = sum(final[task] for task in earlier), sum(learned[task] for task in earlier)
    start = sum(base[task] for task in earlier)
    return Forgetting(
        average=average,
        learned=fmean(learned),
        backward_transfer=fmean(sign * (final[task] - learned[task]) for task in earlier),
        forgetting=fmean(peak - sign * final[task] for task, peak in zip(earlier, peaks, strict=True)),
        forward_transfer=fmean(sign * (stages[task][task] - base[task]) for task in range(1, tasks)),
        retention=_ratio(kept, had) if direction == "higher" else _ratio(had, kept),
        retained_gain=_ratio(kept - start, had - start),
    )


def routing_regret(oracle: Matrix, routed: Matrix, direction: Direction) -> float:
    """What routing costs in the end: ACC oracle-routed − ACC routed, above 0 where routing loses."""
    tasks = _check(oracle)
    if _check(routed) != tasks:
        raise ValueError(f"oracle has {tasks} tasks, routed {_check(routed)}")
    difference = fmean(_row(oracle, tasks)) - fmean(_row(routed, tasks))
    return difference if direction == "higher" else -difference


def _check(matrix: Matrix) -> int:
    tasks = len(matrix) - 1
    widths = sorted({len(row) for row in matrix if row is not None})
    if tasks < 1 or widths != [tasks]:
        raise ValueError(f"R has {len(matrix)} rows of width {widths}, expected T + 1 rows of width T ≥ 1")
    return tasks


def _row(matrix: Matrix, stage: int) -> Row:
    row = matrix[stage]
    if row is None:
        raise ValueError(f"R has no row {stage}: the base and the last stage must be there")
    return row


def _ratio(above: float, below: float) -> float | None:
    return above / below if below else None
