"""What Branchline's plugin and guard cost inside vLLM: an engine with them against a stock one, the same adapters.

    python -m bench.vllm_plugin [--rounds 5]

The stock engine is given the adapters at its start (`--lora-modules`). Both run on the same cores and take turns; the
one that waits is stopped (SIGSTOP). On the CPU build the plugin also keeps adapters off the base's rows, as stock vLLM
0.32.0 does not.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from adapters.home import Home
from adapters.registry import Registry
from tests.vllm_engine import VllmEngine, vllm_engine

from .engines import BASE_ID, Target, engine, mixed_asks, require_vllm
from .load import Ran, run_load
from .random_routes import publish_routes
from .results import Row, write_results
from .spread import row_of_rounds

ROUTES = ("alpha", "beta", "gamma", "delta")
CONCURRENCIES = (1, 32)
TOKENS = 32
WAVES = 2


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    require_vllm()
    with tempfile.TemporaryDirectory() as folder:
        rows = measure(Home.at(folder), arguments.rounds)
    command = f"python -m bench.vllm_plugin --rounds {arguments.rounds}"
    write_results("vllm_plugin", "vLLM with Branchline's plugin and guard against stock vLLM", rows, command)


def measure(home: Home, rounds: int) -> list[Row]:
    publish_routes(home, ROUTES)
    folders = version_folders(home)
    modules = [f"{name}={folder}" for name, folder in folders.items()]
    with engine(home, "ours") as ours, vllm_engine(home.folder / "stock.log", "--lora-modules", *modules) as stock:
        engines = {"ours": ours, "stock": stock}
        return [
            row
            for what, models in (("4 adapters", list(folders)), ("base", [BASE_ID]))
            for concurrency in CONCURRENCIES
            for row in asyncio.run(measure_cell(engines, what, models, concurrency, rounds))
        ]


def version_folders(home: Home) -> dict[str, Path]:
    """Where each version's files lie, by engine name."""
    registry, store = Registry.open(home.registry_url), home.open_store()
    try:
        return {one.engine_name: store.folder(one.route, one.digest) for one in registry.versions()}
    finally:
        registry.close()


async def measure_cell(
    engines: Mapping[str, VllmEngine], what: str, models: list[str], concurrency: int, rounds: int
) -> list[Row]:
    """The ratio of the two engines' throughput, round by round, after one that does not count."""
    ran: list[Ran] = []
    for number in range(rounds + 1):
        asks = mixed_asks(models, WAVES * concurrency, tokens=TOKENS, seed=100 * concurrency + number)
        for name in list(engines)[:: 1 if number % 2 else -1]:
            running = engines[name]
            with _others_stopped(engines, name):
                leg = Target(name, running.url, running.key).leg(asks, concurrency=concurrency)
                ran += await run_load([leg])
    speeds = {name: [one.tokens_a_second for one in ran if one.name == name][1:] for name in engines}
    ratios = [mine / theirs for mine, theirs in zip(speeds["ours"], speeds["stock"], strict=True)]
    failed = sum(len(one.answers) - len(one.good) for one in ran)
    shown = f"{what}, concurrency {concurrency}"
    return [
        row_of_rounds(f"{shown}: throughput against stock vLLM", ratios, "", f"{failed} failed" if failed else ""),
        row_of_rounds(f"{shown}: throughput with plugin and guard", speeds["ours"], "tokens/s"),
    ]


@contextmanager
def _others_stopped(engines: Mapping[str, VllmEngine], name: str) -> Iterator[None]:
    """Only engine `name` runs: an idle one still takes some time from its cores."""
    groups = [running.process.pid for other, running in engines.items() if other != name]
    for group in groups:
        os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        for group in groups:
            os.killpg(group, signal.SIGCONT)


if __name__ == "__main__":
    main()
