"""What the methods cost: a training step, memory and one-time work, each against plain LoRA training of the same loop.

    python -m bench.training_cost [--precision no|bf16] [--steps 20] [--work FOLDER]

Needs the data folder (`../shared/data` or $BRANCHLINE_DATA). Every arm has its own model, optimiser and batches; their
steps take turns, on one thread, plain and arm on the same rows. Time is this process's CPU time per token that is not
padding, medians over the steps: on a machine that others use too, wall time tells of them. Where a GPU computes it is
wall time, and memory is the GPU's. Peak memory is read in a process per arm.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from .data import find_data
from .results import Row, write_results
from .training_arms import NEW, ON_GPU, Arm, Stage
from .training_memory import read_memory
from .training_steps import WARM, Runner, Taken
from .turns import DRAWS, ratio_interval, take_turns

# name, methods, largest ratio of a step that is aimed at
ARMS: tuple[tuple[str, tuple[str, ...], float | None], ...] = (
    ("plain", (), None),
    ("ewc, kfac", ("ewc:importance=kfac",), 1.06),
    ("ewc, kron_diagonal", ("ewc:importance=kron_diagonal",), 1.06),
    ("ewc, diagonal", ("ewc:importance=diagonal",), 1.06),
    ("online_ewc, kfac, two earlier tasks", ("online_ewc",), 1.06),
    ("l2", ("l2",), None),
    ("replay", ("replay:share=0.5",), 1.05),
    ("distill, cached", ("distill:teacher=cached",), 1.10),
    ("distill, live", ("distill:teacher=live",), 1.45),
    ("kl", ("kl",), None),
    ("masking", ("masking:threshold=1000",), None),
    ("orthogonal", ("orthogonal",), None),
    ("projection", ("projection",), None),
    ("si", ("si",), None),
)
SELECTIONS = ("random", "diverse")  # difficult reads every earlier row once, as diverse does
REPLAYED = 0.1
TASK_TOKENS = 400_000
FISHER_SHARE = 12.0
CLOCK = "wall time" if ON_GPU else "CPU time"


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no")
    parser.add_argument("--steps", type=int, default=20, help="timed steps of every arm")
    parser.add_argument("--arm", action="append", choices=[name for name, *_ in ARMS], help="only this; repeatable")
    parser.add_argument("--work", type=Path, help="keep all here and go on from it [default: a temporary folder]")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    work = arguments.work or Path(tempfile.mkdtemp(prefix="branchline-cost-"))
    work.mkdir(parents=True, exist_ok=True)
    stage = Stage(work.resolve(), find_data(), arguments.precision)
    named = [(name, methods, target) for name, methods, target in ARMS if name in (arguments.arm or [name, "plain"])]
    if named[0][0] != "plain":
        named.insert(0, ARMS[0])
    stage.prepare()
    built = {name: stage.build(methods) for name, methods, _ in named}
    taken = read_steps(stage.work / f"steps-{arguments.precision}.json", lambda: time_steps(built, arguments.steps))
    plain = statistics.median(one.counted for one in taken["plain"])
    rows = [*step_rows(taken, named), *once_rows(stage, built, plain)]
    built.clear()
    gc.collect()
    rows += memory_rows(stage, [(name, methods) for name, methods, _ in named])
    name = "training_cost" + ("" if arguments.precision == "no" else f"_{arguments.precision}") + ("_gpu" * ON_GPU)
    what = "float32" if arguments.precision == "no" else arguments.precision
    title = f"What methods cost in training, {'a GPU' if ON_GPU else 'one thread'}, {what}"
    only = "".join(f' --arm "{one}"' for one in arguments.arm or ())
    command = f"python -m bench.training_cost --precision {arguments.precision} --steps {arguments.steps}{only}"
    write_results(name, title, rows, command)


def read_steps(kept: Path, measure: Callable[[], dict[str, list[Taken]]]) -> dict[str, list[Taken]]:
    """What was measured before in the same folder, or else now."""
    if not kept.exists():
        found = {name: [asdict(one) for one in taken] for name, taken in measure().items()}
        kept.write_text(json.dumps(found), encoding="utf-8")
    return {
        name: [Taken(**one) for one in taken] for name, taken in json.loads(kept.read_text(encoding="utf-8")).items()
    }


def time_steps(built: Mapping[str, Arm], steps: int) -> dict[str, list[Taken]]:
    """Every arm's timed steps."""
    return take_turns({name: Runner(arm).step for name, arm in built.items()}, steps, warm=WARM)


def step_rows(
    taken: Mapping[str, Sequence[Taken]], named: Sequence[tuple[str, tuple[str, ...], float | None]]
) -> Iterator[Row]:
    plain = taken["plain"]
    tokens = statistics.mean(one.tokens for one in plain)
    where = f"median of {len(plain)} steps of {tokens:,.0f} tokens without padding, {NEW}"
    counted, wall = (
        statistics.median(times) * 1e6 for times in zip(*((one.counted, one.wall) for one in plain), strict=True)
    )
    shared = "" if ON_GPU else f"; {wall:.0f} µs of wall time, the machine was shared"
    yield Row(f"plain, {CLOCK} of a token", counted, "µs", where + shared)
    for name, _, target in named:
        if name != "plain":
            yield ratio_row(name, taken[name], plain, target)


def ratio_row(name: str, arm: Sequence[Taken], plain: Sequence[Taken], target: float | None) -> Row:
    """Ratio of medians; its interval redraws whole rounds."""
    low, high = interval(arm, plain)
    wall = per_token(arm, lambda one: one.wall) / per_token(plain, lambda one: one.wall)
    notes = [f"target ≤ {target:.2f}"] if target else []
    notes += [f"95 % of {DRAWS} redraws of the rounds: {low:.3f} to {high:.3f}", f"wall time {wall:.2f}"]
    if any(one.remembered for one in arm):
        notes.append(f"share {REPLAYED}, put together from {sum(one.remembered for one in arm)} remembered steps")
    value = per_token(arm, lambda one: one.counted) / per_token(plain, lambda one: one.counted)
    return Row(f"step, {name}", value, "× plain", "; ".join(notes))


def interval(arm: Sequence[Taken], plain: Sequence[Taken]) -> tuple[float, float]:
    """The middle 95 % of the ratio of medians over redrawn rounds."""

    def ratio(chosen: Sequence[int]) -> float:
        mine, theirs = ([taken[index] for index in chosen] for taken in (arm, plain))
        return per_token(mine, lambda one: one.counted) / per_token(theirs, lambda one: one.counted)

    return ratio_interval(len(plain), ratio)


def per_token(taken: Sequence[Taken], clock: Callable[[Taken], float]) -> float:
    """Median seconds; remembered steps count by the share that replay has by default, however many were timed."""
    kinds = [[clock(one) for one in taken if one.remembered is kind] for kind in (False, True)]
    medians = [statistics.median(kind) if kind else None for kind in kinds]
    new, remembered = medians
    if new is None or remembered is None:
        return next(one for one in medians if one is not None)
    return (1 - REPLAYED) * new + REPLAYED * remembered


def once_rows(stage: Stage, built: Mapping[str, Arm], plain: float) -> Iterator[Row]:
    """What is done once before the first step, beside plain training of 400,000 tokens in the same run."""
    task = plain * TASK_TOKENS
    yield Row("once, plain training of 400,000 tokens", task, "s", f"{CLOCK}: what the shares below are of")
    for name, arm in built.items():
        seconds = arm.built.counted
        if seconds < 0.5 or name == "replay":
            continue
        per_row = name in ("distill, cached", "masking")
        own = sum(map(len, arm.context.examples))
        share = seconds / (plain * own if per_row else task)
        what = "share of training on the same rows for one epoch" if per_row else "share of a 400,000-token task"
        aim = f"target ≤ {FISHER_SHARE:.0f} %; " if name in _FISHERS else ""
        how = f"every row read once: {own:,} tokens" if per_row else _HOW.get(name, "256 sequences")
        yield Row(f"once, {name}", seconds, "s", f"{aim}{how}; {100 * share:.1f} %, {what}")
    for selection in SELECTIONS:
        seconds = stage.build((f"replay:selection={selection}",)).built.counted
        note = f"1,000 rows kept of 10,330; {100 * seconds / task:.1f} %, share of a 400,000-token task"
        yield Row(f"once, replay, {selection} selection", seconds, "s", note)


_FISHERS = ("ewc, kfac", "ewc, kron_diagonal", "ewc, diagonal", "online_ewc, kfac, two earlier tasks")
_HOW = {"online_ewc, kfac, two earlier tasks": "256 sequences of each task, which a sequence of runs pays one by one"}


def memory_rows(stage: Stage, arms: Sequence[tuple[str, tuple[str, ...]]]) -> Iterator[Row]:
    found = {name: read_memory(stage, name, methods) for name, methods in arms}
    plain = found["plain"]
    own = plain["peak"] - plain["imported"]
    where = (
        "of the GPU's, allocated"
        if ON_GPU
        else f"resident; {plain['imported']:.0f} MiB more are Python and its libraries"
    )
    yield Row("memory, plain, peak in steps", own, "MiB", where)
    for name, one in found.items():
        if name != "plain":
            ratio = (one["peak"] - one["imported"]) / own
            whole = f"whole process {one['peak']:.0f} MiB against {plain['peak']:.0f}"
            yield Row(f"memory, {name}", ratio, "× plain", "" if ON_GPU else f"without libraries; {whole}")


if __name__ == "__main__":
    main()
