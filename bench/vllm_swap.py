"""Promotes and rollbacks under load: what fails, what answers from a version rolled back, what other routes notice.

    python -m bench.vllm_swap [--changes 25] [--apart]

16 streaming clients on three routes of one vLLM behind one gateway. The real commands promote and roll back one of the
routes in turn; its rollback counts from the start of the command's process, Python's own start-up included. What the
commands' processes take from the same cores is told apart by a command that changes nothing, `route list`.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from adapters.convergence import wait_in_force
from adapters.home import Home
from adapters.registry import Registry

from .engines import BASE, Target, engine, leave_to_engine, mixed_asks, require_vllm
from .gateway import BRANCHLINE, gateway
from .load import Answered, Ran, run_load, start_load
from .random_routes import publish_routes
from .results import Row, write_results
from .spread import row_of_times

SWAPPED, OTHERS = "swapped", ("other-a", "other-b")
CLIENTS = 16
TOKENS = 32
LATE_SECONDS = 0.25
QUIET_SECONDS = 10.0
CONTROLS = 10
LONGEST_SECONDS = 600.0
FOLLOW_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Change:
    """One command: when its process began and ended, and when the gateway had followed (seconds since the epoch)."""

    verb: str
    began: float
    ended: float
    in_force: float
    succeeded: bool


def main() -> None:
    """Run the changes and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--changes", type=int, default=25, help="promotes, and as many rollbacks")
    parser.add_argument("--apart", action="store_true", help="vLLM on core 0, gateway, commands and load on core 1")
    arguments = parser.parse_args()
    require_vllm()
    core = 0 if arguments.apart else None
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Home.at(folder), arguments.changes, core))
    command, title = f"python -m bench.vllm_swap --changes {arguments.changes}", "vLLM: promote and rollback under load"
    if core is None:
        write_results("vllm_swap", f"{title}, all on the same cores", rows, command)
    else:
        write_results("vllm_swap_apart", f"{title}, vLLM on a core of its own", rows, f"{command} --apart")


async def measure(home: Home, count: int, core: int | None) -> list[Row]:
    """Quiet, commands that change nothing, then the changes; one load runs through it all."""
    names = publish_routes(home, (SWAPPED, *OTHERS), versions=2)
    with engine(home, "engine", core=core) as running:
        leave_to_engine(core)
        variables = {"BRANCHLINE_ENGINE_API_KEY": running.key}
        async with gateway(home, "vllm", str(BASE), "--engine", running.url, variables=variables) as served:
            target = Target("gateway", served.url)
            asks = mixed_asks([SWAPPED, *OTHERS], 3000, tokens=TOKENS, seed=7, stream=True)
            await run_load([target.leg(asks[: 4 * CLIENTS], concurrency=CLIENTS)])
            load = await start_load([target.leg(asks, concurrency=CLIENTS, seconds=LONGEST_SECONDS)])
            quiet = time.time() + 1, time.time() + 1 + QUIET_SECONDS  # the load's own start is not quiet
            await asyncio.sleep(QUIET_SECONDS + 1)
            controls = [await run_command(home, "list") for _ in range(CONTROLS)]
            changes = [change async for change in _changes(home, count)]
            load.stop()
            ran = (await load.legs())[0]
    return rows_of(ran, names[SWAPPED][1], quiet, controls, changes, _event_times(home))


async def _changes(home: Home, count: int) -> AsyncIterator[Change]:
    """Each goes on until it is in force, so that there is something to roll back."""
    for words in [("promote", f"{SWAPPED}@2", "--force", "bench"), ("rollback", SWAPPED)] * count:
        change = await run_command(home, *words)
        followed = await asyncio.to_thread(_wait_in_force, home)
        yield replace(change, in_force=max(change.in_force, time.time()), succeeded=change.succeeded and followed)


def _wait_in_force(home: Home) -> bool:
    """Until the gateway has followed the route's last event; `False` where it has not after `FOLLOW_SECONDS`."""
    registry = Registry.open(home.registry_url)
    try:
        serial = registry.events(route=SWAPPED)[-1].serial
        found = wait_in_force(registry, serial, route=SWAPPED, started=time.monotonic(), timeout_seconds=FOLLOW_SECONDS)
        return not found.problems
    finally:
        registry.close()


async def run_command(home: Home, verb: str, *words: str) -> Change:
    """Run `branchline route VERB` as a process."""
    began = time.time()
    process = await asyncio.create_subprocess_exec(
        *(BRANCHLINE, "route", verb, *words, "--home", str(home.folder)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    succeeded = await process.wait() == 0
    ended = time.time()
    return Change(verb, began, ended, ended, succeeded)


def _event_times(home: Home) -> list[float]:
    """When each rollback was written, seconds since the epoch."""
    registry = Registry.open(home.registry_url)
    try:
        events = registry.events(route=SWAPPED)
        return [datetime.fromisoformat(one.time).timestamp() for one in events if one.kind == "rolled_back"]
    finally:
        registry.close()


def rows_of(
    ran: Ran,
    swapped_in: str,
    quiet: tuple[float, float],
    controls: Sequence[Change],
    changes: Sequence[Change],
    written: Sequence[float],
) -> list[Row]:
    """The figures of issue 3, and those that explain them."""
    asks = [SWAPPED, *OTHERS]
    mine = [one for one in ran.answers if asks[one.ask % 3] == SWAPPED]
    others = [one for one in ran.answers if asks[one.ask % 3] != SWAPPED]
    failed = [one for one in ran.answers if one.problem is not None]
    spans = list(_rolled_back(changes))
    stale = [one for one in mine if one.model == swapped_in]
    late = [one for one in stale if any(begin + LATE_SECONDS < one.sent < end for begin, end in spans)]
    after = [one.sent - at for at, (_, end) in zip(written, spans, strict=True) for one in stale if at < one.sent < end]
    promotes = [one for one in changes if one.verb == "promote"]
    gaps = {
        "in quiet time": _gaps(others, [quiet]),
        "during `route list`, which changes nothing": _gaps(others, [(one.began, one.ended) for one in controls]),
        "during a promote": _gaps(others, [(one.began, one.in_force) for one in promotes]),
    }
    unfollowed = sum(not one.succeeded for one in changes)
    unserved = [one for one in ran.answers if one.problem is None and one.reason == "adapter_unavailable"]
    return [
        Row("failed requests", float(len(failed)), "requests", f"target 0; of {len(ran.answers)}; {_kinds(failed)}"),
        Row("answered by the base, `adapter_unavailable`", float(len(unserved)), "requests"),
        Row("changes", float(len(changes)), "commands", f"{len(promotes)} promotes, {len(spans)} rollbacks"),
        Row("changes that failed or were not in force in time", float(unfollowed), "commands", f"{FOLLOW_SECONDS:g} s"),
        Row(
            f"answers from the version rolled back, sent over {LATE_SECONDS * 1000:g} ms after the command's start",
            float(len(late)),
            "answers",
            f"target 0; of {sum(_during(one, spans) for one in mine)} sent in the time; command start-up counts",
        ),
        row_of_times("the latest of them was sent after the command's start", _after_start(stale, spans), 1.0),
        row_of_times("the latest of them was sent after the rollback was written", after, 1.0),
        row_of_times("rollback written after the command's start, median", _startups(changes, written), 0.5),
        *[
            row_of_times(f"gap between tokens of other routes {when}, {name}", values, share, f"{len(values)} gaps")
            for when, values in gaps.items()
            for name, share in (("p50", 0.5), ("p99", 0.99))
        ],
        *[
            row_of_times(f"from the command's start until in force: {verb}, {name}", _durations(changes, verb), share)
            for verb in ("promote", "rollback")
            for name, share in (("p50", 0.5), ("p99", 0.99))
        ],
        Row("load", len(ran.answers) / ran.seconds, "requests/s", f"{CLIENTS} closed-loop clients on the same cores"),
    ]


def _rolled_back(changes: Sequence[Change]) -> Iterator[tuple[float, float]]:
    """From the start of each rollback to the start of the next promote."""
    for position, change in enumerate(changes):
        if change.verb == "rollback":
            later = changes[position + 1 :]
            yield change.began, later[0].began if later else float("inf")


def _after_start(stale: Sequence[Answered], spans: Sequence[tuple[float, float]]) -> list[float]:
    return [one.sent - begin for begin, end in spans for one in stale if begin < one.sent < end]


def _during(one: Answered, spans: Sequence[tuple[float, float]]) -> bool:
    return any(begin + LATE_SECONDS < one.sent < end for begin, end in spans)


def _startups(changes: Sequence[Change], written: Sequence[float]) -> list[float]:
    rollbacks = [one for one in changes if one.verb == "rollback"]
    return [at - one.began for one, at in zip(rollbacks, written, strict=True)]


def _durations(changes: Sequence[Change], verb: str) -> list[float]:
    return [one.in_force - one.began for one in changes if one.verb == verb]


def _gaps(answers: Sequence[Answered], spans: Sequence[tuple[float, float]]) -> list[float]:
    """Times between one token and the next, of those that came within one of `spans`."""
    return [
        later - earlier
        for one in answers
        for earlier, later in itertools.pairwise(one.arrivals[: one.tokens])
        if any(begin <= one.sent + later <= end for begin, end in spans)
    ]


def _kinds(failed: Sequence[Answered]) -> str:
    kinds = {one.problem or "" for one in failed}
    return ", ".join(f"{sum(one.problem == kind for one in failed)} x {kind}" for kind in sorted(kinds)) or "none"


if __name__ == "__main__":
    main()
