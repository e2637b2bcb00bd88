"""What a decision costs inside the gateway: one client, one request after another, the echo engine.

    python -m bench.classifier_latency [--encoder SOURCE] [--split test] [--queries 1000] [--routes 1000]

A figure is the gateway's own `x-branchline-overhead-ms`: from the parsed request to the decision, the wait for the
encoder's thread included, HTTP not. The gateway has one core, the client the others. Beside it the CPU time of the same
decisions in a plain loop, which other work on the machine does not touch. CLINC150's own queries first; then two
gateways in turn, one with 10 routes and one with many, each fitted on as many rows (`classifier_routes`).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import httpx
import numpy as np

from adapters.classifiers import live_classifier
from adapters.home import Home
from adapters.registry import Registry
from router.classify.judge import Judge
from router.classify.loader import load_classifier
from router.classify.memory import Memory

from .classifier_accuracy import COVERAGE
from .classifier_command import encoder_of, parser_of, publish
from .classifier_data import Fold, clinc150
from .classifier_homes import fit_home
from .classifier_routes import compound_routes
from .data import find_data
from .gateway import gateway
from .results import Row
from .spread import percentile, row_of_times

BASE = "toy"
WARM = 50
FEW_ROUTES = 10
ROWS_OF_ROUTE = 10
TARGETS = {"p50": "≤ 0.15 sparse only, ≤ 2.5 with encoder", "p99": "≤ 0.5 sparse only, ≤ 6 with encoder"}
RATIO_TARGET = "target ≤ 1.5 sparse only, ≤ 1.2 with encoder"
DECIDED = frozenset({"abstained", "classified", "no_live_version"})


def main() -> None:
    """Fit, serve, ask, and write the results."""
    parser = parser_of(__doc__)
    parser.add_argument("--queries", type=int, default=1_000, help="timed requests to each gateway")
    parser.add_argument("--routes", type=int, default=1_000, help="beside 10; 0 leaves the comparison out")
    arguments = parser.parse_args()
    name = "encoder" if arguments.encoder else "sparse"
    title = f"A decision inside the gateway, {'with encoder' if arguments.encoder else 'sparse only'}"
    with tempfile.TemporaryDirectory(prefix="branchline-latency-") as work:
        rows = [*clinc_rows(Path(work), arguments), *many_rows(Path(work), arguments)]
    publish(f"classifier_latency_{name}", title, rows, arguments)


def clinc_rows(work: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """CLINC150: queries in scope and out of it, drawn by seed."""
    task = clinc150(find_data(), arguments.split)
    fold: Fold = task.folds[0]
    home = fit_home(work / "clinc150", task.train, fold.calibration, COVERAGE, arguments)
    texts = drawn([row.text for row in fold.judged], arguments.queries)
    (seconds,) = asyncio.run(ask_in_turn([home], texts, arguments.encoder))
    note = f"150 routes, {len(seconds)} queries, 1 core, from x-branchline-overhead-ms; target {{}}"
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        yield row_of_times(f"CLINC150, decision {name}", seconds, share, note.format(TARGETS[name]))
    looped = in_a_loop(home, texts, arguments)
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        yield row_of_times(f"CLINC150, CPU time of a decision {name}", looped, share, "in a loop, no gateway")


def many_rows(work: Path, arguments: argparse.Namespace) -> Iterator[Row]:
    """The same queries to a gateway with few routes and to one with many."""
    if not arguments.routes:
        return
    task = clinc150(find_data(), arguments.split)
    count = ROWS_OF_ROUTE * arguments.routes
    homes: list[Home] = []
    texts: list[str] = []
    for routes in (FEW_ROUTES, arguments.routes):
        rows = compound_routes(task, routes, fitted=count, calibration=count // 10, judged=arguments.queries)
        texts = [row.text for row in rows.judged]
        try:
            homes.append(fit_home(work / f"{routes}-routes", rows.fitted, rows.calibration, COVERAGE, arguments))
        except RuntimeError as error:
            yield Row(f"decision p50 at {arguments.routes:,} routes ÷ at {FEW_ROUTES}", None, "", f"{error}"[:200])
            return
    found = asyncio.run(ask_in_turn(homes, texts, arguments.encoder))
    note = f"{count:,} rows of two CLINC150 sentences each, {len(texts)} queries, the gateways in turn"
    for routes, seconds in zip((FEW_ROUTES, arguments.routes), found, strict=True):
        yield row_of_times(f"{routes:,} routes, decision p50", seconds, 0.5, note)
        yield row_of_times(f"{routes:,} routes, decision p99", seconds, 0.99, note)
    few, many = (percentile(seconds, 0.5) or 0.0 for seconds in found)
    yield Row(f"decision p50 at {arguments.routes:,} routes ÷ at {FEW_ROUTES}", many / few, "×", RATIO_TARGET)


async def ask_in_turn(homes: Sequence[Home], texts: Sequence[str], encoder: str | None) -> list[list[float]]:
    """Seconds of each gateway's decisions on `texts`, each text put to all of them before the next."""
    seconds: list[list[float]] = [[] for _ in homes]
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(served(home, encoder)) for home in homes]
        with on_cores(_cores()[1:]):
            for number, text in enumerate([*texts[:WARM], *texts]):
                for own, client in zip(seconds, clients, strict=True):
                    found = await decision_seconds(client, text)
                    if number >= WARM:
                        own.append(found)
    return seconds


def in_a_loop(home: Home, texts: Sequence[str], arguments: argparse.Namespace) -> list[float]:
    """CPU seconds of each decision by the classifier in use, its encoding included."""
    live = live_classifier(Registry.open(home.registry_url))
    if live is None:
        raise RuntimeError("the fit promoted no classifier")
    judge = Judge(load_classifier(home.open_store().classifier_folder(live.digest)), Memory.build([]))
    remembered = encoder_of(arguments)
    seconds = []
    for text in [*texts[:WARM], *texts]:
        started = time.process_time()
        vectors = remembered.encoder.encode([text]) if remembered else None
        judge.judge([text], vectors)
        seconds.append(time.process_time() - started)
    return seconds[len(seconds) - len(texts) :]


@asynccontextmanager
async def served(home: Home, encoder: str | None) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a gateway that has the first core to itself."""
    flags = ["--encoder", encoder] if encoder else []
    async with AsyncExitStack() as stack:
        with on_cores(_cores()[:1]):  # the gateway inherits it
            running = await stack.enter_async_context(gateway(home, "echo", BASE, *flags))
        yield await stack.enter_async_context(httpx.AsyncClient(base_url=running.url, timeout=30))


async def decision_seconds(client: httpx.AsyncClient, text: str) -> float:
    """What the gateway says one decision took. Raises `RuntimeError` where the classifier was not asked."""
    body = {"model": "auto", "messages": [{"role": "user", "content": text}], "max_tokens": 1}
    answer = (await client.post("/v1/chat/completions", json=body)).raise_for_status()
    reason = answer.headers["x-branchline-reason"]
    if reason not in DECIDED:
        raise RuntimeError(f"the gateway did not classify: {reason}")
    return float(answer.headers["x-branchline-overhead-ms"]) / 1000


def drawn(texts: Sequence[str], count: int) -> list[str]:
    """`count` of `texts`, drawn by seed."""
    return [texts[at] for at in np.random.default_rng(0).permutation(len(texts))[:count]]


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """This process, and what it starts, on `cores` alone; on all where there are none to choose."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(cores) or before)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


if __name__ == "__main__":
    main()
