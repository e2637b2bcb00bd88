"""Soak: mixed traffic at 70 % of capacity while an operator changes something every second and engines are killed.

    python -m bench.soak [--minutes 30] [--workers 1] [--share 0.7] [--kill-every 60] [--dry]
    python -m bench.soak --minutes 10 --engines vllm --share 0.25 --kill-every 150

A real gateway process; two engines as processes, stand-ins or vLLM (whose start takes most of a small machine for a
minute: leave it room). Promised: no promise of `bench.fault_clients` is broken; a
stream is cut only where its engine was killed; memory does not grow by more than `MOST_GROWTH_MB` after the warm-up; a
gateway told to end lets running answers finish, and leaves no process, socket, file or complaint over. Ends with exit
code 1 where a promise was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from adapters.base import find_base

from .engines import BASE
from .fault_client_cases import outstanding
from .fault_ground import Ground, ground_in, until
from .processes import family
from .results import Row, write_results
from .soak_engines import two_real_engines
from .soak_leftovers import drain, left_over, sample, shared_memory, slope
from .soak_strikes import kill, operate
from .soak_traffic import Seen, capacity, traffic

MOST_GROWTH_MB = 10.0  # over the whole time after the warm-up, by its slope
SHARE = 0.7  # of the capacity
Engines = Literal["stand-in", "vllm"]
CAPACITY_SECONDS = 10.0
WARM_SHARE = 0.3  # of the time, whose memory is not looked at
EXTRA_FILES = 32  # that may be open after the traffic: connections to engines that are kept for the next call
SAMPLE_SECONDS = 1.0
MOST_WARNINGS = 200
_WARNING = re.compile(r" (?:WARNING|ERROR) |branchline\.vllm")


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how hard, all in seconds; without a `rate`, `share` of the capacity that is measured before."""

    seconds: float
    workers: int = 1
    engines: Engines = "stand-in"
    share: float = SHARE
    rate: float | None = None
    change_every: float = 1.0
    kill_every: float = 60.0


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of it; `problems` are all broken promises, in words, and `warnings` what the gateway said meanwhile."""

    plan: Plan
    rate: float
    seen: Seen
    changes: Counter[str]
    megabytes: tuple[float, float]
    growth: float
    problems: Sequence[str]
    warnings: Sequence[str]


def main() -> None:
    """Soak one gateway, print what came of it, write the results unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--engines", choices=get_args(Engines), default="stand-in", help="[default: %(default)s]")
    parser.add_argument("--share", type=float, default=SHARE, help="of what is measured before [default: %(default)s]")
    parser.add_argument("--rate", type=float, help="requests a second, instead of a share")
    parser.add_argument("--kill-every", type=float, default=60.0)
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    given = parser.parse_args()
    plan = Plan(given.minutes * 60, given.workers, given.engines, given.share, given.rate, kill_every=given.kill_every)
    ran = asyncio.run(soak(plan))
    rows = rows_of(ran)
    for row in rows:
        print(f"{row.what:50} {row.value:10.4g} {row.unit:12} {row.note}")
    for problem in ran.problems:
        print(f"    {problem}")
    if not given.dry:
        vllm, many = plan.engines == "vllm", plan.workers > 1
        name = "soak" + "_vllm" * vllm + f"_{plan.workers}_workers" * many
        title = f"Soak of a gateway with {plan.workers} worker(s), {'vLLM' if vllm else 'stand-in'} engines"
        write_results(name, title, rows, " ".join(["python -m bench.soak", *sys.argv[1:]]))
    if ran.problems:
        print("\n".join(ran.warnings[-MOST_WARNINGS:]), file=sys.stderr)
        sys.exit("a promise was broken")


async def soak(plan: Plan) -> Ran:
    """Run the plan on ground of its own."""
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder) / "scratch"
        scratch.mkdir()
        flags = ("--workers", str(plan.workers), "--decision-log", f"{folder}/decisions.jsonl")
        variables = {"TMPDIR": str(scratch), "PYTHONWARNINGS": "always::ResourceWarning"}
        before = shared_memory()
        async with _ground(plan, Path(folder), flags, variables) as ground:
            return await _soak(plan, ground, scratch, before)


def _ground(
    plan: Plan, folder: Path, flags: Sequence[str], variables: Mapping[str, str]
) -> AbstractAsyncContextManager[Ground]:
    """With the plan's engines."""
    if plan.engines == "stand-in":
        return ground_in(folder, *flags, variables=variables)
    key = secrets.token_hex(16)
    start = partial(two_real_engines, key=key)
    known = {**variables, "BRANCHLINE_ENGINE_API_KEY": key}
    return ground_in(folder, *flags, start_engines=start, base=find_base(str(BASE)), variables=known)


async def _soak(plan: Plan, ground: Ground, scratch: Path, shared: frozenset[str]) -> Ran:
    pid = ground.gateways[0].process.pid
    rate = plan.rate or plan.share * await capacity(ground, CAPACITY_SECONDS)
    seen, changes, stop = Seen(), Counter[str](), asyncio.Event()
    samples: list[tuple[float, float]] = []
    files, problems = open_files(pid), []
    memory = asyncio.create_task(sample(pid, samples, SAMPLE_SECONDS))
    tasks = [
        asyncio.create_task(traffic(ground, seen, rate, stop)),
        asyncio.create_task(operate(ground, changes, plan.change_every, stop)),
        asyncio.create_task(kill(ground, seen, plan.kill_every, stop)),
    ]
    await asyncio.wait(tasks, timeout=plan.seconds, return_when=asyncio.FIRST_EXCEPTION)
    stop.set()
    await asyncio.gather(*tasks)
    memory.cancel()
    with suppress(asyncio.CancelledError):
        await memory
    await until(lambda: outstanding(ground) == 0, "that no engine works any more")
    more = open_files(pid) - files
    problems += [f"{more} more files are open than before the traffic"] if more > EXTRA_FILES else []
    pids = family(pid)
    problems += await drain(ground)
    problems += left_over(ground, pids, scratch, shared)
    warm = WARM_SHARE * plan.seconds
    growth = slope(samples, warm) * (plan.seconds - warm) / 60
    problems += [f"memory grew by {growth:.1f} MB"] if growth > MOST_GROWTH_MB else []
    problems += [*seen.words, *([f"{seen.broken} broken promises in all"] if seen.broken else [])]
    ends = next((mb for seconds, mb in samples if seconds >= warm), 0.0), samples[-1][1]
    warnings = [line for line in ground.gateways[0].lines if _WARNING.search(line)]
    return Ran(plan, rate, seen, changes, ends, growth, problems, warnings)


def open_files(pid: int) -> int:
    """Of a process and all its children."""
    return sum(len(list(Path(f"/proc/{member}/fd").iterdir())) for member in family(pid))


def rows_of(ran: Ran) -> list[Row]:
    """The figures of one soak."""
    seen, changes = ran.seen, ran.changes
    done = ", ".join(f"{count} x {verb}" for verb, count in sorted(changes.items()))
    statuses = ", ".join(f"{count} x {status}" for status, count in sorted(seen.statuses.items()))
    first, last = ran.megabytes
    return [
        Row("broken promises", float(seen.broken), "requests", "none promised"),
        Row("anything left over, or not drained", float(len(ran.problems) - len(seen.words) - bool(seen.broken)), ""),
        Row("requests", float(seen.asked), "", f"{statuses}; {seen.left} clients left"),
        Row(
            "rate",
            ran.rate,
            "requests/s",
            "given" if ran.plan.rate else f"{100 * ran.plan.share:g} % of what was measured before",
        ),
        Row("streams that were cut by a kill, and said so", float(seen.cut), "streams"),
        Row("engines killed", float(len(seen.kills)), ""),
        Row("changes by an operator", float(sum(changes.values())), "", done),
        Row("memory after the warm-up", first, "MB", "allocated and touched, all its processes"),
        Row("memory at the end", last, "MB"),
        Row("growth of memory, by its slope", ran.growth, "MB", f"promised: at most {MOST_GROWTH_MB:g}"),
    ]


if __name__ == "__main__":
    main()
