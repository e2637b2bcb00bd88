"""`kill -9` of an engine under load: two replicas behind one gateway, and one engine that Branchline itself started.

    python -m bench.vllm_kill

16 clients, half of them streaming. With two replicas, one dies for good: what had not begun to stream must not fail.
With one managed engine: what clients see until Branchline has started it again, and how long that takes.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from adapters.home import Home

from .engines import BASE, MANAGED_VARIABLES, SHAPE, Target, engine, mixed_asks, require_vllm
from .gateway import gateway
from .load import Answered, Ask, Leg, Ran, run_load, start_load
from .processes import command_line, family
from .random_routes import publish_routes
from .results import Row, write_results

ROUTES = ("alpha", "beta", "gamma", "delta")
CLIENTS = 16
TOKENS = 64
BEFORE_SECONDS = 5.0
AFTER_SECONDS = 15.0
LONGEST_SECONDS = 150.0
GOOD_SECONDS = 5.0


def main() -> None:
    """Kill both ways and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    python = require_vllm()
    rows: list[Row] = []
    for part in (one_of_two, the_managed_one):
        with tempfile.TemporaryDirectory() as folder:
            home = Home.at(folder)
            publish_routes(home, ROUTES)
            rows += asyncio.run(part(home, python))
    write_results("vllm_kill", "vLLM: `kill -9` of an engine under load", rows, "python -m bench.vllm_kill")


async def one_of_two(home: Home, _python: Path) -> list[Row]:
    """Two external replicas, of which one dies and stays dead."""
    with engine(home, "first") as first, engine(home, "second", key=first.key) as second:
        flags = ("--engine", first.url, "--engine", second.url)
        variables = {"BRANCHLINE_ENGINE_API_KEY": first.key}
        async with gateway(home, "vllm", str(BASE), *flags, variables=variables) as served:
            await run_load([_leg(served.url)])
            load = await start_load([_leg(served.url, seconds=LONGEST_SECONDS)])
            await asyncio.sleep(BEFORE_SECONDS)
            killed = time.time()
            first.kill()
            await asyncio.sleep(AFTER_SECONDS)
            load.stop()
            ran = (await load.legs())[0]
    return rows_of_two(ran, killed)


async def the_managed_one(home: Home, python: Path) -> list[Row]:
    """One engine, started and watched by the gateway."""
    variables = {**MANAGED_VARIABLES, "BRANCHLINE_VLLM_PYTHON": str(python)}
    async with gateway(home, "vllm", str(BASE), *SHAPE, variables=variables) as served:
        await run_load([_leg(served.url)])
        load = await start_load([_leg(served.url, seconds=LONGEST_SECONDS)])
        await asyncio.sleep(BEFORE_SECONDS)
        killed = time.time()
        for pid in engine_processes(served.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await _answers_again(served.url)
        await asyncio.sleep(GOOD_SECONDS)
        load.stop()
        ran = (await load.legs())[0]
    return rows_of_one(ran, killed)


def engine_processes(gateway_pid: int) -> list[int]:
    """vLLM's processes below a gateway, without what watches over them."""
    mine = [pid for pid in family(gateway_pid) if "vllm.entrypoints" in command_line(pid)]
    servers = [pid for pid in mine if "keeper" not in command_line(pid)]
    if not servers:
        raise RuntimeError("the gateway has no vLLM process below it")
    return family(servers[0])


def _leg(url: str, *, seconds: float | None = None) -> Leg:
    asks = mixed_asks(list(ROUTES), 4 * CLIENTS if seconds is None else 4000, tokens=TOKENS, seed=3)
    half = [Ask(one.model, one.text, one.tokens, stream=number % 8 < 4) for number, one in enumerate(asks)]
    return Target("gateway", url).leg(half, concurrency=CLIENTS, seconds=seconds)


async def _answers_again(url: str) -> None:
    """Until a live version, not the base in its place, has answered; gives up after `LONGEST_SECONDS`."""
    deadline = time.monotonic() + LONGEST_SECONDS
    while time.monotonic() < deadline:
        ran = (await run_load([Target("again", url).leg([Ask(ROUTES[0], "again", 1)], concurrency=1)]))[0]
        if any("@" in one.model for one in ran.good):
            return
        await asyncio.sleep(0.5)


def rows_of_two(ran: Ran, killed: float) -> list[Row]:
    """Failures by whether the answer had begun, and the slowest answer of those that were under way."""
    failed = [one for one in ran.answers if one.problem is not None]
    begun = [one for one in failed if one.arrivals]
    under_way = [one for one in ran.good if one.sent < killed < one.ended]
    after = [one for one in ran.good if one.sent > killed]
    slowest = max((one.seconds for one in under_way), default=None)
    return [
        Row(
            "two replicas: failed requests that had not begun to stream",
            float(len(failed) - len(begun)),
            "requests",
            f"target 0; of {len(ran.answers)}; {_kinds([one for one in failed if not one.arrivals])}",
        ),
        Row("two replicas: failed requests that had begun to stream", float(len(begun)), "requests", _kinds(begun)),
        Row("two replicas: under way at the kill and answered all the same", float(len(under_way)), "requests"),
        Row("two replicas: slowest of these", slowest, "s"),
        Row("two replicas: answered by the base instead", _count_base(ran.good), "requests", "`adapter_unavailable`"),
        Row("two replicas: good answers sent after the kill", float(len(after)), "requests", f"{AFTER_SECONDS:g} s"),
    ]


def rows_of_one(ran: Ran, killed: float) -> list[Row]:
    """Time to recovery, and what clients saw until then."""
    good = [one.ended - killed for one in ran.good if one.sent > killed]
    versions = [one.ended - killed for one in ran.good if one.sent > killed and "@" in one.model]
    failed = [one for one in ran.answers if one.problem is not None]
    refused = [one for one in failed if one.status == 503]
    told = sum(bool(one.retry_after) for one in refused)
    begun = [one for one in failed if one.arrivals and one.status == 200]
    other = [one for one in failed if one not in refused and one not in begun]
    return [
        Row("one managed engine: kill to the first good answer", min(good, default=None), "s"),
        Row("one managed engine: kill to the first answer of a live version", min(versions, default=None), "s"),
        Row("one managed engine: 503 meanwhile", float(len(refused)), "requests", f"{told} with Retry-After"),
        Row("one managed engine: streams cut short", float(len(begun)), "requests", _kinds(begun)),
        Row("one managed engine: other failures", float(len(other)), "requests", _kinds(other)),
        Row("one managed engine: answered by the base instead", _count_base(ran.good), "requests"),
    ]


def _count_base(answers: Sequence[Answered]) -> float:
    return float(sum(one.reason == "adapter_unavailable" for one in answers))


def _kinds(failed: Sequence[Answered]) -> str:
    counted = Counter(one.problem or "" for one in failed)
    return ", ".join(f"{count} x {kind}" for kind, count in sorted(counted.items()))


if __name__ == "__main__":
    main()
