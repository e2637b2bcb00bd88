"""A thousand versions behind one gateway, more than the engine holds, under Zipf-distributed traffic.

    python -m bench.vllm_versions [--versions 1000] [--seconds 45]

Every route has one live version, a random rank-4 adapter. A vLLM that Branchline starts holds 64 of them. The first
arm has the default policy (the base answers where a version is not there), the second `cold_wait_ms` 5000. The times of
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
FOLLOW_SECONDS = 3.0
SETTLE_SECONDS = 90.0
LOADS = "branchline_adapter_load_seconds"


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

    @property
    def count(self) -> float:
        return max(self.at_most.values(), default=0.0)

    def bound(self, share: float) -> float | None:
        """The smallest bucket's bound that at least `share` of the loads did not exceed, in seconds."""
        finite = {bound: count for bound, count in self.at_most.items() if self.count and math.isfinite(bound)}
        return min((bound for bound, count in finite.items() if count >= share * self.count), default=None)


@dataclass(frozen=True, slots=True)
class Arm:
    """One policy's run, the loads in it, and the memory after it."""

    cold_wait_ms: int
    ran: Ran
    loads: Loads
    memory: Memory


def main() -> None:
    """Run both arms and write the results; ends with an error where a request failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=45.0, help="of each arm")
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
    """Both arms on one gateway; the rows, and how many requests failed."""
    names = [f"task-{number:04}" for number in range(versions)]
    began = time.perf_counter()
    publish_routes(home, names)
    published = time.perf_counter() - began
    variables = {**MANAGED_VARIABLES, "BRANCHLINE_VLLM_PYTHON": str(python)}
    flags = (*SHAPE, "--max-loras", "4", "--max-cpu-loras", str(HELD))
    began = time.perf_counter()
    async with gateway(home, "vllm", str(BASE), *flags, variables=variables) as served:
        started = time.perf_counter() - began
        settled = await _settle(served)
        target = Target("gateway", served.url)
        await run_load([target.leg([Ask(names[0], text, TOKENS) for text in distinct_prompts(16, 1)], concurrency=8)])
        first = Memory.of(served)
        arms = [await run_arm(home, served, names, wait, seconds) for wait in (0, COLD_WAIT_MS)]
    rows = [
        Row("publish and promote, per version", published / versions * 1000, "ms"),
        Row("start of the gateway until it serves", started, "s", "the managed engine's start included"),
        Row(f"after that until {HELD} versions are loaded and proved", settled, "s", "without traffic"),
        *[row for arm in arms for row in rows_of(arm)],
        *rows_of_memory([first, *[arm.memory for arm in arms]]),
    ]
    return rows, sum(one.problem is not None for arm in arms for one in arm.ran.answers)


async def run_arm(home: Home, served: Gateway, names: Sequence[str], cold_wait_ms: int, seconds: float) -> Arm:
    """Set the policy of every route, then send traffic."""
    set_cold_wait(home, names, cold_wait_ms)
    await asyncio.sleep(FOLLOW_SECONDS)
    asks = zipf_asks(names, REQUESTS, seed=2 + cold_wait_ms)
    before = await Loads.of(served)
    leg = Target("gateway", served.url).leg(asks, concurrency=CLIENTS, seconds=seconds)
    ran = (await run_load([leg]))[0]
    return Arm(cold_wait_ms, ran, (await Loads.of(served)).since(before), Memory.of(served))


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


def zipf_asks(names: Sequence[str], count: int, seed: int) -> list[Ask]:
    """The n-th most wanted of `names` is asked for 1 / n^`EXPONENT` as often as the first; who that is, is drawn."""
    order = random.Random(0)
    ranked = order.sample(names, len(names))
    weights = [1 / (rank + 1) ** EXPONENT for rank in range(len(names))]
    chosen = random.Random(seed).choices(ranked, weights, k=count)
    return [Ask(name, text, TOKENS) for name, text in zip(chosen, distinct_prompts(count, seed), strict=True)]


def set_cold_wait(home: Home, names: Sequence[str], milliseconds: int) -> None:
    registry = Registry.open(home.registry_url)
    try:
        for name in names:
            registry.change_route(name, policy={"cold_wait_ms": milliseconds})
    finally:
        registry.close()


def rows_of(arm: Arm) -> list[Row]:
    """What one policy gave."""
    ran, loads, what = arm.ran, arm.loads, f"cold_wait_ms {arm.cold_wait_ms}"
    failed = Counter(one.problem for one in ran.answers if one.problem is not None)
    from_base = [one for one in ran.good if one.reason == "adapter_unavailable"]
    versions = [one for one in ran.good if "@" in one.model]
    asked = f"{len(ran.answers)} requests, {len({_route(one) for one in versions})} versions answered"
    kinds = ", ".join(f"{count} x {kind}" for kind, count in failed.items())
    mean = loads.seconds / loads.count if loads.count else None
    shares = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
    bounds = [(name, loads.bound(share)) for name, share in shares]
    return [
        Row(f"{what}: failed requests", float(sum(failed.values())), "requests", f"target 0; {asked} {kinds}".strip()),
        Row(f"{what}: answered by the base, `adapter_unavailable`", _share(from_base, ran), "%"),
        Row(f"{what}: a load, mean", None if mean is None else mean * 1000, "ms", f"{loads.count:g} loads"),
        *[
            Row(f"{what}: a load, {name}, at most", None if bound is None else bound * 1000, "ms", "histogram bucket")
            for name, bound in bounds
        ],
        *[
            row_of_times(f"{what}: whole answer of a version, {name}", [one.seconds for one in versions], share)
            for name, share in shares
        ],
        row_of_times(f"{what}: whole answer of the base, p50", [one.seconds for one in from_base], 0.5),
        Row(f"{what}: throughput", len(ran.answers) / ran.seconds, "requests/s", f"{CLIENTS} closed-loop clients"),
    ]


def rows_of_memory(memories: Sequence[Memory]) -> list[Row]:
    moments = ("at the start", "after the first arm", "at the end")
    return [
        row
        for moment, memory in zip(moments, memories, strict=True)
        for row in (
            Row(f"memory of the gateway {moment}", memory.gateway, "MB"),
            Row(f"memory of the engine {moment}", memory.engine, "MB", "all its processes"),
        )
    ]


def _route(one: Answered) -> str:
    return one.model.partition("@")[0]


def _share(some: Sequence[Answered], ran: Ran) -> float | None:
    return 100 * len(some) / len(ran.answers) if ran.answers else None


if __name__ == "__main__":
    main()
