"""What gateways cost a request: CPU time, latency added, memory. Branchline beside its peers, in one run.

    make bench-gateway                                     everything: 12 minutes; writes results/gateway.json
    python -m bench.gateway_overhead --requests 1000000    the same with a longer memory part
    python -m bench.gateway_overhead --quick               a look, 2 minutes; prints only
    python -m bench.gateway_overhead --quick --arm pinned --arm auto --part cpu --home FOLDER     while working on it

One instant upstream in its own process (`gateway_upstream`), one server of each kind in front of it
(`gateway_servers`), load by wrk. Gateways have one core, each in its turn; upstream and load share another. Every
request has another text: CLINC150 rows that the classifier has not seen. CPU time is user + system of the server's
processes, children included, over the requests that they sent on to the upstream.

    cpu       closed loop of 32 clients, 1 KB bodies: pinned names a route, auto is classified
    streamed  the same, answers of 16 events
    sizes     bodies of 16 KB and 256 KB
    latency   the upstream answers after 50 ms (streams: then an event each 2 ms); a constant rate of half of what
              the server carries, from the moment a request is due, minus straight to the upstream at that rate
    memory    of the gateway, while it answers `--requests` requests of `auto`

Branchline runs with everything on: key, limits, metrics, decision headers. The peers check what `gateway_servers` says.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from adapters.keyring import create_key
from adapters.keys import MAX_LIMIT, KeyLimits
from adapters.registry import Registry

from .adapter_folder import BASE
from .data import find_data
from .gateway import gateway
from .gateway_cells import Arm, Bench
from .gateway_home import Served, prepare
from .gateway_parts import PARTS, Effort, measure
from .gateway_rows import Missed, rows_of
from .gateway_servers import Missing, Server, litellm, on_core, plain_proxy, upstream, vllm_router
from .results import Row, write_results

ARMS = ("pinned", "auto", "litellm", "vllm_router", "fastapi_httpx")
PEERS = {"litellm": litellm, "vllm_router": vllm_router, "fastapi_httpx": plain_proxy}
WHOLE_RUN = Effort(seconds=3, rounds=3, latency_seconds=6, requests=200_000)
GIVEN = ("seconds", "rounds", "requests")
QUICK = Effort(seconds=1, rounds=1, latency_seconds=2, requests=2_000, answers=("",))


def main() -> None:
    """Measure; write the results of a whole run, print those of any other."""
    arguments = _parser().parse_args()
    if shutil.which("wrk") is None:
        sys.exit("this measurement needs wrk: apt-get install wrk")
    with tempfile.TemporaryDirectory() as folder:
        served = prepare(arguments.home or Path(folder) / "home", find_data(), arguments.labels)
        rows = asyncio.run(_run(served, Path(folder), arguments))
    for row in rows:
        value = "not measured" if row.value is None else f"{row.value:.4g}"
        print(f"{row.what}: {value} {row.unit}  ({row.note})")
    if not (arguments.quick or arguments.arm or arguments.part or arguments.labels or arguments.workers > 1):
        write_results("gateway", "What gateways cost a request", rows, _command(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short; prints only")
    parser.add_argument("--arm", action="append", choices=ARMS, help="only these; may be repeated")
    parser.add_argument("--part", action="append", choices=PARTS, help="only these; may be repeated")
    parser.add_argument("--seconds", type=float, help=f"of one arm in one round [default: {WHOLE_RUN.seconds:g}]")
    parser.add_argument("--rounds", type=int, help=f"[default: {WHOLE_RUN.rounds}]")
    parser.add_argument("--requests", type=int, help=f"of the memory part [default: {WHOLE_RUN.requests:,}]")
    parser.add_argument("--home", type=Path, help="keep what is served here; it is made once")
    parser.add_argument("--workers", type=int, default=1, help="processes of Branchline's that answer; prints only")
    parser.add_argument("--labels", type=int, help="so many routes instead of 150, for a trial")
    return parser


async def _run(served: Served, folder: Path, arguments: argparse.Namespace) -> list[Row]:
    given = {name: getattr(arguments, name) for name in GIVEN if getattr(arguments, name) is not None}
    effort = replace(QUICK if arguments.quick else WHOLE_RUN, **given)
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, {cores[-1]})
    async with upstream(folder / "upstream.log") as straight, AsyncExitStack() as stack:
        with on_core(cores[0]):
            arms, missed = await _arms(stack, served, straight, folder, arguments)
        bench = Bench(served, straight)
        return rows_of(await measure(bench, arms, arguments.part or PARTS, effort), missed, cores=len(cores))


async def _arms(
    stack: AsyncExitStack, served: Served, straight: Server, folder: Path, arguments: argparse.Namespace
) -> tuple[list[Arm], list[Missed]]:
    """Each wanted way, started, and what could not be started."""
    wanted, arms, missed = arguments.arm or ARMS, [], []
    if {"pinned", "auto"} & set(wanted):
        own = await stack.enter_async_context(_branchline(served, straight, arguments.workers))
        arms = [Arm("pinned", own, served.pinned), Arm("auto", own, "auto")]
    for name, start in PEERS.items():
        if name in wanted:
            try:
                server = await stack.enter_async_context(start(straight.url, folder / f"{name}.log"))
            except Missing as problem:
                missed.append(Missed(name, str(problem)))
            else:
                arms.append(Arm(name, server, server.model))
    return [arm for arm in arms if arm.name in wanted], missed


@asynccontextmanager
async def _branchline(served: Served, straight: Server, workers: int) -> AsyncIterator[Server]:
    """Branchline's gateway with every version warm, and a key that has all limits, none of which is reached."""
    registry = Registry.open(served.home.registry_url)
    try:
        limits = KeyLimits(requests_per_minute=MAX_LIMIT, tokens_per_minute=MAX_LIMIT, max_concurrent=MAX_LIMIT)
        key = create_key(registry, f"bench-{secrets.token_hex(4)}", "inference", limits=limits)
    finally:
        registry.close()
    flags = ["--engine", straight.url, *(["--workers", str(workers)] if workers > 1 else [])]
    async with gateway(served.home, "vllm", str(BASE), *flags) as running:
        yield Server("branchline", running.port, running.pid, "auto", key.secret)


def _command(arguments: argparse.Namespace) -> str:
    given = [f"--{name} {getattr(arguments, name):g}" for name in GIVEN if getattr(arguments, name) is not None]
    return " ".join(["python -m bench.gateway_overhead", *given])


if __name__ == "__main__":
    main()
