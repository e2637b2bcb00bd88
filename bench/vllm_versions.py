"""A thousand versions behind one gateway, more than the engine holds, under Zipf-distributed traffic.

    python -m bench.vllm_versions [--versions 1000] [--seconds 90]

Every route has one live version, a random rank-4 adapter. A vLLM that Branchline starts holds 64 of them. Every other
route has the default policy (the base answers where a version is not there), the rest `cold_wait_ms` 5000. The times of
loads are from the gateway's own histogram. A version is proved on its first load; later loads of it are shorter.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from adapters.home import Home
from adapters.registry import Registry

from .engines import BASE, MANAGED_VARIABLES, SHAPE, Target, require_vllm
from .gateway import Gateway, gateway
from .load import Answered, Ask, Ran, run_load
from .processes import family, memory_mb
from .prompts import distinct_prompts
from .random_routes import publish_routes
from .results import Row, write_results
from .spread import row_of_times

HELD = 64
COLD_WAIT_MS = 5000
CLIENTS = 8
TOKENS = 8
EXPONENT = 1.0
REQUESTS = 20_000
SETTLE_SECONDS = 60.0
LOADS = "branchline_adapter_load_seconds"
SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


@dataclass(frozen=True, slots=True)
class Memory:
    """Proportional set sizes in MB."""

    gateway: float
    engine: float

    @classmethod
    def of(cls, served: Gateway) -> Memory:
        return cls(memory_mb(served.pid), sum(memory_mb(pid) for pid in family(served.pid)[1:]))


@dataclass(frozen=True, slots=True)
class Loads:
    """The gateway's histogram of loads: how many took at most so many seconds, and all their seconds together."""

    at_most: dict[float, float]
    seconds: float

    @classmethod
    async def of(cls, served: Gateway) -> Loads:
        lines = (await _get(served, "/metrics")).splitlines()
        buckets = [line for line in lines if line.startswith(f"{LOADS}_bucket")]
        counted = {float(line.split('le="')[1].split('"')[0]): float(line.split()[-1]) for line in buckets}
        total = sum(float(line.split()[-1]) for line in lines if line.startswith(f"{LOADS}_sum"))
        return cls(counted, total)

    def since(self, before: Loads) -> Loads:
        counted = {bound: count - before.at_most.get(bound, 0.0) for bound, count in self.at_most.items()}
        return Loads(counted, self.seconds - before.seconds)

    def rows(self) -> list[Row]:
        count = max(self.at_most.values(), default=0.0)
        mean = 1000 * self.seconds / count if count else None
        return [
            Row("a load, mean", mean, "ms", f"{count:g} loads under traffic, with their proof where it was the first"),
            *[Row(f"a load, {name}, at most", self._bound(share, count), "ms", "bucket") for name, share in SHARES],
        ]

    def _bound(self, share: float, count: float) -> float | None:
        """The smallest bucket's bound that at least `share` of the loads did not exceed, in milliseconds."""
        reached = [bound for bound, found in self.at_most.items() if count and found >= share * count]
        return min((1000 * bound for bound in reached if math.isfinite(bound)), default=None)


def main() -> None:
    """Run the traffic and write the results; ends with an error where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=90.0, help="of traffic")
    arguments = parser.parse_args()
    python = require_vllm()
    with tempfile.TemporaryDirectory() as folder:
        rows, failed = asyncio.run(measure(Home.at(folder), python, arguments.versions, arguments.seconds))
    command = f"python -m bench.vllm_versions --versions {arguments.versions} --seconds {arguments.seconds:g}"
    title = f"vLLM: {arguments.versions} versions behind one gateway, {HELD} held by the engine"
    write_results("vllm_versions", title, rows, command)
    if failed:
        raise SystemExit(f"{failed} requests failed")


async def measure(home: Home, python: Path, versions: int, seconds: float) -> tuple[list[Row], int]:
    """The rows, and how many requests failed."""
    names = [f"task-{number:04}" for number in range(versions)]
    ranked = random.Random(0).sample(names, len(names))
    began = time.perf_counter()
    publish_routes(home, names)
    published = time.perf_counter() - began
    set_cold_wait(home, ranked[1::2])
    variables = {**MANAGED_VARIABLES, "BRANCHLINE_VLLM_PYTHON": str(python)}
    flags = (*SHAPE, "--max-loras", "4", "--max-cpu-loras", str(HELD))
    began = time.perf_counter()
    async with gateway(home, "vllm", str(BASE), *flags, variables=variables) as served:
        started = time.perf_counter() - began
        settled = await _settle(served)
        warm = in_force(home)
        target = Target("gateway", served.url)
        await run_load([target.leg([Ask(names[-1], text, TOKENS) for text in distinct_prompts(16, 1)], concurrency=8)])
        memories, loads = [Memory.of(served)], await Loads.of(served)
        leg = target.leg(zipf_asks(ranked, REQUESTS, seed=2), concurrency=CLIENTS, seconds=seconds)
        ran = (await run_load([leg]))[0]
        loads = (await Loads.of(served)).since(loads)
        memories.append(Memory.of(served))
    asked = [leg.asks[one.ask].model for one in ran.answers]
    rows = [
        Row("publish and promote, per version", published / versions * 1000, "ms"),
        Row("start of the gateway until it serves", started, "s", "the managed engine's start included"),
        Row("after that until nothing is being loaded", settled, "s", f"{len(warm)} versions in force, no traffic"),
        *rows_of_answers(ran, asked, set(ranked[1::2]), warm),
        *loads.rows(),
        *rows_of_memory(memories),
    ]
    return rows, sum(one.problem is not None for one in ran.answers)


def zipf_asks(ranked: Sequence[str], count: int, seed: int) -> list[Ask]:
    """The n-th of `ranked` is asked for 1 / n^`EXPONENT` as often as the first."""
    weights = [1 / (rank + 1) ** EXPONENT for rank in range(len(ranked))]
    chosen = random.Random(seed).choices(ranked, weights, k=count)
    return [Ask(name, text, TOKENS) for name, text in zip(chosen, distinct_prompts(count, seed), strict=True)]


def set_cold_wait(home: Home, names: Sequence[str]) -> None:
    registry = Registry.open(home.registry_url)
    try:
        for name in names:
            registry.change_route(name, policy={"cold_wait_ms": COLD_WAIT_MS})
    finally:
        registry.close()


def in_force(home: Home) -> set[str]:
    """The routes whose version the gateway says is in force."""
    registry = Registry.open(home.registry_url)
    try:
        return {name for row in registry.gateways() for name, found in row.routes.items() if found.engine_name}
    finally:
        registry.close()


async def _settle(served: Gateway) -> float:
    """Until nothing is being brought in any more; the seconds that took."""
    began = time.perf_counter()
    while time.perf_counter() - began < SETTLE_SECONDS:
        if not json.loads(await _get(served, "/ready"))["warming"]:
            break
        await asyncio.sleep(0.5)
    return time.perf_counter() - began


async def _get(served: Gateway, path: str) -> str:
    async with httpx.AsyncClient(base_url=served.url, timeout=30) as client:
        return (await client.get(path)).text


def rows_of_answers(ran: Ran, asked: Sequence[str], waiting: set[str], warm: set[str]) -> list[Row]:
    """What clients saw under both policies. `asked` is the route of each answer."""
    pairs = sorted(zip(asked, ran.answers, strict=True), key=lambda pair: pair[1].sent)
    failed = Counter(one.problem for one in ran.answers if one.problem is not None)
    kinds = ", ".join(f"{count} x {kind}" for kind, count in failed.items())
    note = f"target 0; of {len(pairs)} to {len(set(asked))} routes {kinds}".strip()
    first: dict[str, Answered] = {}
    for route, one in pairs:
        first.setdefault(route, one)
    cold = [one for route, one in first.items() if route in waiting and route not in warm and "@" in one.model]
    later = [one for route, one in pairs if one is not first[route] and "@" in one.model]
    middle = ran.began + ran.seconds / 2
    halves = {
        "first": [pair for pair in pairs if pair[1].sent < middle],
        "second": [pair for pair in pairs if pair[1].sent >= middle],
    }
    rows = [Row("failed requests", float(sum(failed.values())), "requests", note)]
    for name, mine in halves.items():
        for policy, answers in (
            ("cold_wait_ms 0", [one for route, one in mine if route not in waiting]),
            (f"cold_wait_ms {COLD_WAIT_MS}", [one for route, one in mine if route in waiting]),
        ):
            what = f"{policy}: answered by the base, `adapter_unavailable`, {name} half"
            rows.append(Row(what, _share_unavailable(answers), "%", f"{len(answers)} requests"))
    return [
        *rows,
        *[
            row_of_times(
                f"first request to a cold version, with its load, {name}",
                [one.seconds for one in cold],
                share,
                f"{len(cold)} versions, cold_wait_ms {COLD_WAIT_MS}",
            )
            for name, share in SHARES
        ],
        *[
            row_of_times(f"later requests, {name}", [one.seconds for one in later], share, f"{len(later)} requests")
            for name, share in SHARES
        ],
        Row("load", len(pairs) / ran.seconds, "requests/s", f"{CLIENTS} closed-loop clients, {TOKENS} tokens"),
    ]


def rows_of_memory(memories: Sequence[Memory]) -> list[Row]:
    return [
        row
        for moment, memory in zip(("at the start", "at the end"), memories, strict=True)
        for row in (
            Row(f"memory of the gateway {moment}", memory.gateway, "MB"),
            Row(f"memory of the engine {moment}", memory.engine, "MB", "all its processes"),
        )
    ]


def _share_unavailable(answers: Sequence[Answered]) -> float | None:
    unavailable = sum(one.reason == "adapter_unavailable" for one in answers)
    return 100 * unavailable / len(answers) if answers else None


if __name__ == "__main__":
    main()
