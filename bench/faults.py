"""The fault suite: what breaks, what is promised all the same, and how many requests were broken (none may be).

    python -m bench.faults [--only WORD] [--workers N] [--dry]

Real gateway processes under load, on SQLite and PostgreSQL; engines are processes that fail as they are told. Where a
promise hangs on what vLLM itself does, tests on a real vLLM hold it (`REAL`). Ends with exit code 1 where a promise
was broken.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .fault_client_cases import clients_leave, half_open, no_files_left, slow_loris
from .fault_clock_cases import clock_back, clock_forward, faked_clock, missing_library
from .fault_engine_cases import (
    all_gone,
    engine_breaks,
    engine_cuts,
    engine_fails,
    engine_garbage,
    engine_hung,
    engine_killed,
    engine_slow,
    one_of_two_gone,
)
from .fault_gateway_cases import gateway_killed
from .fault_ground import Count, Ground, ground_in, is_whole, until
from .fault_postgres import postgres_locked, postgres_read_only, postgres_slow, postgres_stopped, postgresql
from .fault_registry_cases import disk_full, registry_garbage, registry_gone, registry_locked
from .fault_store_cases import classifier_corrupted, version_corrupted, version_missing, version_swapped
from .results import Row, write_results

Place = Literal["one gateway", "two gateways", "PostgreSQL", "faked clock"]
REQUEST = "what has not begun to stream is answered while one engine lives; what has begun says that it was cut"
WHOLE = "every request is answered, and no stream is cut"
REFUSED = "errors are OpenAI errors with a request id; it answers again by itself"
REGISTRY = "nobody notices; what was in force stays, visibly stale; changes come again"
STORE = "it never answers; the one before stays; the problem is seen"
CLOCK = "nobody notices; an operator's change is in force and said to be"
OTHERS = "everybody else is answered, and nothing is left open"


@dataclass(frozen=True, slots=True)
class Case:
    """One fault: `strike` brings it about under load, and leaves the ground as it was."""

    name: str
    promise: str
    strike: Callable[[Ground], Awaitable[Count]]
    place: Place = "one gateway"
    quick: bool = True  # some seconds; these are tests too


CASES = (
    Case("engine killed", REQUEST, engine_killed),
    Case("engine hung (SIGSTOP)", REQUEST, engine_hung, quick=False),
    Case("engine slow", WHOLE, engine_slow),
    Case("engine answers garbage", WHOLE, engine_garbage),
    Case("engine answers 500", WHOLE, engine_fails),
    Case("engine resets connections", WHOLE, engine_breaks),
    Case("engine cuts answers half-way", REQUEST, engine_cuts),
    Case("one of two replicas gone", WHOLE, one_of_two_gone),
    Case("all replicas gone", REFUSED, all_gone),
    Case("registry locked", REGISTRY, registry_locked, quick=False),
    Case("registry's file moved away", REGISTRY, registry_gone),
    Case("registry's file replaced by garbage", REGISTRY, registry_garbage),
    Case("disk full, or read-only", REGISTRY, disk_full),
    Case("version corrupted in the store", STORE, version_corrupted),
    Case("version missing in the store", STORE, version_missing),
    Case("version swapped for another one", STORE, version_swapped),
    Case("classifier corrupted", STORE, classifier_corrupted),
    Case("clients leave", OTHERS, clients_leave),
    Case("slow-loris", OTHERS, slow_loris),
    Case("half-open connections", OTHERS, half_open),
    Case("no file descriptors left", REFUSED, no_files_left),
    Case(
        "gateway killed",
        "another gateway misses nothing; a new one knows what is in force",
        gateway_killed,
        "two gateways",
    ),
    Case("PostgreSQL stopped", REGISTRY, postgres_stopped, "PostgreSQL", quick=False),
    Case("PostgreSQL's tables locked", REGISTRY, postgres_locked, "PostgreSQL", quick=False),
    Case("PostgreSQL read-only", REGISTRY, postgres_read_only, "PostgreSQL", quick=False),
    Case("PostgreSQL answers nothing", REGISTRY, postgres_slow, "PostgreSQL", quick=False),
    Case("clock jumps a day forward", CLOCK, clock_forward, "faked clock", quick=False),
    Case("clock jumps a day back", CLOCK, clock_back, "faked clock", quick=False),
)
REAL = (
    ("real vLLM killed, hung, out of memory, port taken", "tests/test_router_vllm_supervision.py"),
    ("real vLLM killed under streams", "tests/test_end_to_end_vllm.py, python -m bench.vllm_kill"),
    ("gateway killed: no managed vLLM is left over", "tests/test_router_vllm_process.py"),
    ("engine's copy of a version altered or cut", "tests/test_engine_copies.py"),
    ("crash at any point of a publication", "tests/test_adapters_crash.py"),
    ("operators who race and are killed", "tests/test_adapters_operators.py"),
    ("workers killed and hung", "tests/test_router_workers.py, tests/test_router_workers_end.py"),
)


def main() -> None:
    """Run the cases, print the table, write the results unless told not to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--workers", type=int, default=1, help="of each gateway; results are written for 1 alone")
    parser.add_argument("--dry", action="store_true", help="print the table and write nothing")
    given = parser.parse_args()
    cases = [case for case in CASES if given.only in case.name]
    rows = asyncio.run(run_cases(cases, given.workers))
    if not given.dry and given.workers == 1 and not given.only:
        write_results(
            "faults", "Faults: requests that were judged, and promises that were broken", rows, "python -m bench.faults"
        )
    if any(row.value for row in rows):
        sys.exit("a promise was broken")


async def run_cases(cases: Sequence[Case], workers: int = 1) -> list[Row]:
    """One row for each: how many promises were broken, of how many requests."""
    rows: list[Row] = []
    for place in dict.fromkeys(case.place for case in cases):
        reason = missing_library() if place == "faked clock" else None
        here = [case for case in cases if case.place == place]
        if reason is not None:
            rows += [Row(case.name, None, "broken promises", reason) for case in here]
            continue
        async with place_for(place, workers) as ground:
            for case in here:
                began = time.monotonic()
                counted = await strike(case, ground)
                rows.append(_row(case, counted))
                _show(case, counted, time.monotonic() - began)
    for what, tests in REAL:
        print(f"{what}: {tests}")
    return rows


async def strike(case: Case, ground: Ground) -> Count:
    """Run a case on whole ground."""
    for gateway in ground.gateways:
        await until(lambda gateway=gateway: is_whole(ground, gateway.url), "whole ground")  # type: ignore[misc]
    return await case.strike(ground)


@asynccontextmanager
async def place_for(place: Place, workers: int = 1) -> AsyncIterator[Ground]:
    """Ground that the cases of `place` need."""
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        flags = ("--decision-log", str(folder / "decisions.jsonl"), "--workers", str(workers))
        if place == "PostgreSQL":
            yield await stack.enter_async_context(postgresql(folder, *flags))
        elif place == "faked clock":
            yield await stack.enter_async_context(faked_clock(folder, *flags))
        else:
            count = 2 if place == "two gateways" else 1
            yield await stack.enter_async_context(ground_in(folder, *flags, gateways=count))


def _row(case: Case, counted: Count) -> Row:
    note = f"of {counted.requests} requests; promised: {case.promise}"
    return Row(
        case.name, float(len(counted.broken)), "broken promises", f"{note}; {counted.note}" if counted.note else note
    )


def _show(case: Case, counted: Count, seconds: float) -> None:
    figures = f"{counted.requests:6} requests  {len(counted.broken):3} broken  {seconds:5.1f} s"
    print(f"{case.name:40} {figures}  {counted.note}", flush=True)
    for one in dict.fromkeys(counted.broken):
        print(f"    {one}")


if __name__ == "__main__":
    main()
