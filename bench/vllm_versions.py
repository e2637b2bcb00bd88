"""A thousand versions behind one gateway, more than the engine holds, under Zipf-distributed traffic.

    python -m bench.vllm_versions [--versions 1000] [--seconds 45]

Every route has one live version, a random rank-4 adapter. A vLLM that Branchline starts holds 64 of them. The first
arm has the default policy (the base answers where a version is not there), the second `cold_wait_ms` 5000.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
WAITED_SECONDS = 0.02  # the gateway's own part is far below; what took longer waited for a load
FOLLOW_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Proportional set sizes in MB."""

    gateway: float
    engine: float

    @classmethod
    def of(cls, served: Gateway) -> Memory:
        return cls(memory_mb(served.pid), sum(memory_mb(pid) for pid in family(served.pid)[1:]))


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
        target = Target("gateway", served.url)
        await run_load([target.leg(zipf_asks(names, 100, seed=1), concurrency=CLIENTS)])
        memories = [Memory.of(served)]
        arms = []
        for cold_wait_ms in (0, COLD_WAIT_MS):
            set_cold_wait(home, names, cold_wait_ms)
            await asyncio.sleep(FOLLOW_SECONDS)
            asks = zipf_asks(names, REQUESTS, seed=2 + cold_wait_ms)
            arms.append((await run_load([target.leg(asks, concurrency=CLIENTS, seconds=seconds)]))[0])
            memories.append(Memory.of(served))
    rows = [
        Row("publish and promote, per version", published / versions * 1000, "ms"),
        Row("start of the gateway until it serves", started, "s", "the managed engine's start included"),
        *[row for wait, ran in zip((0, COLD_WAIT_MS), arms, strict=True) for row in rows_of(wait, ran)],
        *rows_of_memory(memories),
    ]
    return rows, sum(one.problem is not None for ran in arms for one in ran.answers)


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


def rows_of(cold_wait_ms: int, ran: Ran) -> list[Row]:
    """What one policy gave."""
    failed = Counter(one.problem for one in ran.answers if one.problem is not None)
    from_base = [one for one in ran.good if one.reason == "adapter_unavailable"]
    versions = [one for one in ran.good if "@" in one.model]
    cold = [one for one in versions if one.overhead > WAITED_SECONDS]
    warm = [one for one in versions if one.overhead <= WAITED_SECONDS]
    what = f"cold_wait_ms {cold_wait_ms}"
    asked = f"{len(ran.answers)} requests, {len({_route(one) for one in versions})} versions answered"
    kinds = ", ".join(f"{count} x {kind}" for kind, count in failed.items())
    waits = [one.overhead for one in cold]
    return [
        Row(f"{what}: failed requests", float(sum(failed.values())), "requests", kinds or f"target 0; {asked}"),
        Row(f"{what}: answered by the base, `adapter_unavailable`", _share(from_base, ran), "%"),
        Row(f"{what}: answered by the version after a load", _share(cold, ran), "%"),
        *[
            row_of_times(f"{what}: wait for the load, {name}", waits, share, f"{len(waits)} loads waited for")
            for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
        ],
        row_of_times(f"{what}: whole answer where the version was there, p50", [one.seconds for one in warm], 0.5),
        row_of_times(f"{what}: whole answer where the version was there, p99", [one.seconds for one in warm], 0.99),
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
