"""From the start of `branchline route disable` to the last answer from that route, under load.

    python -m bench.disable [--trials 100]

A real gateway process (echo engine: instant, so that the gateway is what is measured) under 16 closed-loop clients
asking `model="auto"` for the route. Each trial runs the real command as a process. The event's own time in the registry
splits the figure: before it lies the command's start-up, after it what the gateway takes.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime

import httpx

from adapters.classifiers import promote_classifier, publish_classifier
from adapters.examples import add_examples
from adapters.home import Home
from adapters.registry import Registry
from adapters.rows import LabelledText
from router.classify.artifact import save_classifier
from router.classify.fit import fit_classifier

from .adapter_folder import publish_random_adapter
from .gateway import BRANCHLINE, gateway
from .results import Row, write_results

CLIENTS = 16
TEXT = "which city has the largest population"
EXAMPLES = {
    "sql": ["which city has the most people", "show the price of every fruit", "count the rows where age is 3"],
    "booking": ["a table for two on friday", "book us in for dinner at eight", "reserve four seats for tonight"],
}


@dataclass(frozen=True)
class Seen:
    """One answer as a client saw it: when it had come whole (seconds since the epoch), and from where."""

    at: float
    stage: str
    status: int


@dataclass(frozen=True)
class Trial:
    """One disable: its phases in seconds."""

    startup: float
    propagation: float
    total: float


def main() -> None:
    """Run the trials and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        home = Home.at(folder)
        prepare(home)
        trials, failed, rate = asyncio.run(measure(home, arguments.trials))
    write(trials, failed, rate, f"python -m bench.disable --trials {arguments.trials}")


def prepare(home: Home) -> None:
    """Two routes with a live version each, and a classifier that tells them apart."""
    registry, store = Registry.open(home.registry_url), home.open_store()
    for name, texts in EXAMPLES.items():
        registry.create_route(name)
        add_examples(registry, name, texts, source="bench")
        publish_random_adapter(registry, store, name)
        registry.promote(name, 1, forced="benchmark")
    rows = [LabelledText(text, name) for name, texts in EXAMPLES.items() for text in texts]
    classifier = fit_classifier(rows)
    save_classifier(classifier, home.folder / "classifier")
    version = publish_classifier(
        registry, store, home.folder / "classifier", digest=classifier.digest, summary=classifier.summary
    )
    promote_classifier(registry, version.number)
    registry.close()


async def measure(home: Home, count: int) -> tuple[list[Trial], int, float]:
    """The trials, how many requests failed, and the load in requests a second."""
    async with gateway(home, "echo", "toy") as served:
        seen: list[Seen] = []
        stop = asyncio.Event()
        clients = [asyncio.create_task(ask_until(stop, served.port, seen)) for _ in range(CLIENTS)]
        began = time.time()
        trials = [await one_trial(home, seen) for _ in range(count)]
        stop.set()
        await asyncio.gather(*clients)
        return trials, sum(one.status != 200 for one in seen), len(seen) / (time.time() - began)


async def ask_until(stop: asyncio.Event, port: int, seen: list[Seen]) -> None:
    """One closed-loop client."""
    body = {"model": "auto", "messages": [{"role": "user", "content": TEXT}]}
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        while not stop.is_set():
            response = await client.post("/v1/chat/completions", json=body)
            seen.append(Seen(time.time(), response.headers.get("x-branchline-stage", "?"), response.status_code))


async def one_trial(home: Home, seen: list[Seen]) -> Trial:
    """Disable under load, measure, enable again and wait until the route answers."""
    await _until(seen, "live")
    started = time.time()
    await command(home, "disable")
    await _until(seen, "base")
    last = max(one.at for one in seen if one.stage == "live")
    with closing(Registry.open(home.registry_url)) as registry:
        at = written_at(registry)
    await command(home, "enable")
    return Trial(startup=at - started, propagation=max(0.0, last - at), total=last - started)


async def command(home: Home, verb: str, registry_url: str | None = None) -> str:
    """Run `branchline route VERB sql` as a process; what it said."""
    words = ("route", verb, "sql", "--home", str(home.folder), "--registry", registry_url or home.registry_url)
    ran = await asyncio.create_subprocess_exec(BRANCHLINE, *words, stdout=asyncio.subprocess.PIPE)
    said, _ = await ran.communicate()
    if ran.returncode:
        raise RuntimeError(f"route {verb} failed")
    return said.decode()


def written_at(registry: Registry) -> float:
    """When the route was disabled last, by the history (seconds since the epoch)."""
    event = next(one for one in reversed(registry.events(route="sql")) if one.kind == "disabled")
    return datetime.fromisoformat(event.time).timestamp()


async def _until(seen: list[Seen], stage: str) -> None:
    """Wait until every client has had an answer from `stage`, one after another, with nothing else between."""
    while len(seen) < 2 * CLIENTS or any(one.stage != stage for one in seen[-2 * CLIENTS :]):
        await asyncio.sleep(0.01)


def write(trials: Sequence[Trial], failed: int, rate: float, command: str) -> None:
    """Median and p99 of each phase."""
    rows = [
        Row(f"{name}, {what}", value * 1000, "ms", note)
        for name, values, note in (
            ("command start-up, until its event", [one.startup for one in trials], "measured apart"),
            ("event to the last answer from the route", [one.propagation for one in trials], "target: p99 under 250"),
            ("start of the command to the last answer", [one.total for one in trials], ""),
        )
        for what, value in (("median", statistics.median(values)), ("p99", p99(values)))
    ]
    rows += [
        Row("load", rate, "requests/s", f"{CLIENTS} closed-loop clients on the same cores"),
        Row("failed requests", float(failed), "requests"),
        Row("trials", float(len(trials)), "trials"),
    ]
    write_results("disable", "`route disable`: from the command to the last answer", rows, command)


def p99(values: Sequence[float]) -> float:
    """The smallest value that at least 99 % of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-99 * len(ordered) // 100) - 1)]


if __name__ == "__main__":
    main()
