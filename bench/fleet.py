"""`route disable` on several gateways under load: from its event to the last answer from that route on any of them.

    python -m bench.fleet [--trials 100] [--gateways 4] [--rate 40] [--database postgresql,sqlite,workers]

Real gateway processes (echo engine: instant, so that the gateways are what is measured) on one registry, each asked
`model="auto"` for the route at a constant rate. Each trial runs the real command as a process, and reads from the
history when its event was written. `workers` is one gateway of as many worker processes, on SQLite.
"""

import argparse
import asyncio
import re
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from adapters.home import Home
from adapters.registry import Registry
from adapters.registry_copy import copy_registry
from tests.postgres_server import postgres_server

from .disable import TEXT, command, p99, prepare, written_at
from .gateway import gateway
from .results import Row, write_results

DATABASES = ("postgresql", "sqlite", "workers")
TITLES = {"postgresql": "PostgreSQL", "sqlite": "SQLite", "workers": "SQLite, worker processes"}
PROMISE = 0.250
PROMISED_SHARE = 99
SETTLED_SECONDS = 30.0
CLIENTS = 4  # for each gateway; they share its rate


@dataclass(frozen=True, slots=True)
class Fleet:
    """Gateways that serve, and the registry that they follow."""

    home: Home
    registry_url: str
    urls: tuple[str, ...]
    processes: int


@dataclass
class Load:
    """What all clients have seen so far. `last_live` is when the route last answered (seconds since the epoch)."""

    answers: int = 0
    failed: int = 0
    last_live: float = 0.0
    stages: dict[int, str] = field(default_factory=dict)  # of each client's last answer


@dataclass(frozen=True, slots=True)
class Trial:
    """Seconds from the event to the last answer from the route on any gateway, and what the command itself said."""

    propagation: float
    told: float


def main() -> None:
    """Measure every database asked for and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--gateways", type=int, default=4)
    parser.add_argument("--rate", type=float, default=40.0, help="requests a second for each gateway")
    parser.add_argument("--database", default=",".join(DATABASES))
    given = parser.parse_args()
    rows: list[Row] = []
    for database in given.database.split(","):
        with registry_of(database) as (home, url):
            rows += asyncio.run(measure(database, home, url, given.gateways, given.trials, given.rate))
    flags = f"--trials {given.trials} --gateways {given.gateways} --rate {given.rate:g} --database {given.database}"
    write_results("fleet", "`route disable` on several gateways under load", rows, f"python -m bench.fleet {flags}")


@contextmanager
def registry_of(database: str) -> Iterator[tuple[Home, str]]:
    """A home with two routes and a classifier, and the URL of its registry; PostgreSQL's is a server of its own."""
    with tempfile.TemporaryDirectory() as folder:
        home = Home.at(Path(folder) / "home")
        prepare(home)
        if database != "postgresql":
            yield home, home.registry_url
            return
        with postgres_server(durable=True) as server:
            url = server.new_database()
            with closing(Registry.open(home.registry_url)) as source, closing(Registry.open(url)) as target:
                copy_registry(source, target)
            yield home, url


async def measure(database: str, home: Home, url: str, count: int, trials: int, rate: float) -> list[Row]:
    """Run the trials under load; the rows of one database."""
    async with fleet(home, url, count, as_workers=database == "workers") as running:
        load, stop = Load(), asyncio.Event()
        per_client = CLIENTS * len(running.urls) / (rate * count)
        clients = [
            asyncio.create_task(ask_until(stop, address, load, number * CLIENTS + place, per_client))
            for number, address in enumerate(running.urls)
            for place in range(CLIENTS)
        ]
        began = time.time()
        with closing(Registry.open(running.registry_url)) as registry:
            found = [await one_trial(running, registry, load) for _ in range(trials)]
        elapsed = time.time() - began
        stop.set()
        await asyncio.gather(*clients)
    return rows_of(TITLES[database], running.processes, found, load, load.answers / elapsed)


@asynccontextmanager
async def fleet(home: Home, url: str, count: int, *, as_workers: bool) -> AsyncIterator[Fleet]:
    """`count` gateways on the registry at `url`, or one with as many workers."""
    async with AsyncExitStack() as stack:
        variables = {"BRANCHLINE_REGISTRY": url}
        flags = ("--workers", str(count)) if as_workers else ()
        started = [
            await stack.enter_async_context(gateway(home, "echo", "toy", *flags, variables=variables))
            for _ in range(1 if as_workers else count)
        ]
        yield Fleet(home, url, tuple(one.url for one in started), count)


async def ask_until(stop: asyncio.Event, url: str, load: Load, number: int, seconds: float) -> None:
    """One client that asks every `seconds`, whether or not the last answer was late."""
    body = {"model": "auto", "messages": [{"role": "user", "content": TEXT}]}
    due = time.monotonic() + seconds * (number % CLIENTS) / CLIENTS
    async with aiohttp.ClientSession(url) as session:
        while not stop.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + seconds, time.monotonic() - 1)
            async with session.post("/v1/chat/completions", json=body) as response:
                await response.read()
            stage = response.headers.get("x-branchline-stage", "?")
            load.answers += 1
            load.failed += response.status != 200
            load.stages[number] = stage
            if stage == "live":
                load.last_live = time.time()


async def one_trial(running: Fleet, registry: Registry, load: Load) -> Trial:
    """Disable under load, and wait until no client is answered by the route; then enable, and wait again."""
    await _until(load, running, "live")
    said = await command(running.home, "disable", running.registry_url)
    await _until(load, running, "base")
    propagation = max(0.0, load.last_live - written_at(registry))
    await command(running.home, "enable", running.registry_url)
    match = re.search(r"in force on (\d+) of (\d+) gateways after (\d+) ms", said)
    if match is None or match[1] != match[2] or int(match[2]) != len(running.urls):
        raise RuntimeError(f"not in force everywhere: {said}")
    return Trial(propagation, int(match[3]) / 1000)


async def _until(load: Load, running: Fleet, stage: str) -> None:
    """Wait until the last answer of every client came from `stage`."""
    deadline = time.monotonic() + SETTLED_SECONDS
    load.stages.clear()
    while len(load.stages) < CLIENTS * len(running.urls) or set(load.stages.values()) != {stage}:
        if time.monotonic() > deadline:
            raise RuntimeError(f"not every client was answered from {stage}: {load.stages}")
        await asyncio.sleep(0.005)


def rows_of(title: str, processes: int, found: Sequence[Trial], load: Load, rate: float) -> list[Row]:
    """The figures of one database; the promise is the share of trials within 250 ms."""
    kept = sum(one.propagation <= PROMISE for one in found)
    propagation, told = [one.propagation for one in found], [one.told for one in found]
    of_processes = f"{title}, {processes} processes: "
    note = f"promised: {PROMISED_SHARE} of 100"
    return [
        Row(f"{of_processes}in force everywhere within 250 ms", 100 * kept / len(found), "% of trials", note),
        Row(
            f"{of_processes}event to the last answer from the route, median",
            1000 * statistics.median(propagation),
            "ms",
        ),
        Row(f"{of_processes}event to the last answer from the route, p99", 1000 * p99(propagation), "ms"),
        Row(
            f"{of_processes}what the command said, median", 1000 * statistics.median(told), "ms", "without its start-up"
        ),
        Row(f"{of_processes}what the command said, p99", 1000 * p99(told), "ms"),
        Row(f"{of_processes}failed requests", float(load.failed), "requests", f"of {load.answers}"),
        Row(f"{of_processes}load", rate, "requests/s", "all processes together"),
        Row(f"{of_processes}trials", float(len(found)), "trials"),
    ]


if __name__ == "__main__":
    main()
