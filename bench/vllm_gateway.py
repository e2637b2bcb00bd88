"""What the gateway costs: throughput through it against straight to vLLM, and the time it adds to the first token.

    python -m bench.vllm_gateway [--rounds 3] [--seconds 1.5] [--waves 1] [--tokens N] [--concurrency N] [--apart]

One vLLM with four random adapters on the pocket base, one gateway in front of it, and the load generator, all on the
same cores; or, with `--apart`, vLLM on core 0 and the others on core 1: then the gateway takes no time from the engine,
as where that runs on a GPU. Each cell runs straight and through the gateway in turn, with the same prompts in another
order; the figure is the median of the rounds' ratios. Time to the first token is taken in an open loop, at half of what
vLLM alone carries.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from adapters.home import Home

from .engines import BASE, Target, engine, leave_to_engine, mixed_asks, require_vllm
from .gateway import gateway
from .load import Leg, Ran, run_load
from .random_routes import publish_routes
from .results import Row, write_results
from .spread import percentile, row_of_rounds, row_of_times

ROUTES = ("alpha", "beta", "gamma", "delta")
TARGET = 0.97
CONCURRENCIES = (1, 8, 32)
LENGTHS = (32, 256)
OPEN_ROUNDS = 4
OPEN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Arms:
    """The two ways to the same engine. `models` are the names that each of them knows the versions by."""

    direct: Target
    gateway: Target
    direct_models: list[str]
    gateway_models: list[str]
    watched: dict[str, int]

    def pair(
        self,
        count: int,
        *,
        tokens: int,
        stream: bool,
        seed: int,
        concurrency: int | None = None,
        rate: float | None = None,
    ) -> list[Leg]:
        """The same prompts for both arms, in another order; which arm begins changes with the seed."""
        legs = []
        for target, models in ((self.direct, self.direct_models), (self.gateway, self.gateway_models)):
            asks = mixed_asks(models, count, tokens=tokens, seed=seed, stream=stream)
            random.Random(f"{seed} {target.name}").shuffle(asks)
            legs.append(target.leg(asks, concurrency=concurrency, rate=rate))
        return legs if seed % 2 else legs[::-1]


@dataclass(frozen=True, slots=True)
class Effort:
    """How long to measure: rounds, about so many seconds of each arm in a round, answers of each client at least."""

    rounds: int
    seconds: float
    waves: int


@dataclass(frozen=True, slots=True)
class Cell:
    """What was found for one length, concurrency and way of answering; one value a round."""

    tokens: int
    concurrency: int
    stream: bool
    ratios: Sequence[float]
    direct_rate: float
    gateway_cpu: float
    engine_cpu: float
    failed: int


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of one arm in one round, about")
    parser.add_argument("--waves", type=int, default=1, help="at least so many answers of each client in a round")
    parser.add_argument("--tokens", type=int, nargs="*", default=LENGTHS, help="lengths of answers")
    parser.add_argument("--concurrency", type=int, nargs="*", default=CONCURRENCIES)
    parser.add_argument("--apart", action="store_true", help="vLLM on core 0, gateway and load on core 1")
    arguments = parser.parse_args()
    require_vllm()
    effort = Effort(arguments.rounds, arguments.seconds, arguments.waves)
    shapes = [(tokens, clients) for tokens in arguments.tokens for clients in arguments.concurrency]
    core = 0 if arguments.apart else None
    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Home.at(folder), effort, shapes, core))
    where = "vLLM on a core of its own" if arguments.apart else "all on the same cores"
    how = ", in steady state" if effort.waves > 1 else ""
    name = f"vllm_gateway{'_apart' if arguments.apart else ''}{'_steady' if effort.waves > 1 else ''}"
    title = f"vLLM: through the gateway against straight to the engine, {where}{how}"
    write_results(name, title, rows, " ".join(["python -m bench.vllm_gateway", *sys.argv[1:]]))


async def measure(home: Home, effort: Effort, shapes: Sequence[tuple[int, int]], core: int | None) -> list[Row]:
    """All cells, then the time to the first token. `shapes` are lengths of answers and numbers of clients."""
    names = publish_routes(home, ROUTES)
    with engine(home, "engine", core=core) as running:
        leave_to_engine(core)
        flags = ("--engine", running.url)
        async with gateway(
            home, "vllm", str(BASE), *flags, variables={"BRANCHLINE_ENGINE_API_KEY": running.key}
        ) as served:
            arms = Arms(
                Target("direct", running.url, running.key),
                Target("gateway", served.url),
                [names[route][0] for route in ROUTES],
                list(ROUTES),
                {"gateway": served.pid, "engine": running.process.pid},
            )
            cells = [
                await measure_cell(arms, tokens, concurrency, stream, effort)
                for stream in (False, True)
                for tokens, concurrency in shapes
            ]
            shortest = min(cell.tokens for cell in cells)
            saturated = max(cell.direct_rate for cell in cells if cell.stream and cell.tokens == shortest)
            first = await measure_first_token(arms, shortest, saturated / 2)
    return [row for cell in cells for row in cell_rows(cell)] + first + [gpu_row()]


async def measure_cell(arms: Arms, tokens: int, concurrency: int, stream: bool, effort: Effort) -> Cell:
    """Warm both arms up, find out how many requests fill a round, and let the arms take turns."""

    def legs_of(count: int, seed: int, tokens: int = tokens) -> list[Leg]:
        return arms.pair(count, tokens=tokens, stream=stream, seed=seed, concurrency=concurrency)

    warm = await run_load(legs_of(concurrency * 2, seed=tokens + concurrency, tokens=min(LENGTHS)))
    speed = min(ran.tokens_a_second for ran in warm) / tokens
    count = max(effort.waves, round(speed * effort.seconds / concurrency)) * concurrency
    seed = 1000 * tokens + 10 * concurrency
    legs = [leg for number in range(effort.rounds) for leg in legs_of(count, seed + number)]
    ran = await run_load(legs, arms.watched)
    direct, through = _named(ran, "direct"), _named(ran, "gateway")
    answered = sum(len(one.answers) for one in through)
    return Cell(
        tokens,
        concurrency,
        stream,
        [straight.seconds / one.seconds for straight, one in zip(direct, through, strict=True)],
        statistics.median(count / one.seconds for one in direct),
        sum(one.cpu["gateway"] for one in through) / answered,
        sum(one.cpu["engine"] for one in direct) / answered,
        sum(len(one.answers) - len(one.good) for one in ran),
    )


def cell_rows(cell: Cell) -> list[Row]:
    how = "streamed" if cell.stream else "whole"
    what = f"{cell.tokens} tokens, {how}, concurrency {cell.concurrency}"
    direct = f"straight: {cell.direct_rate:.3g} requests/s"
    failed = f"; {cell.failed} FAILED" if cell.failed else ""
    cpu = f"vLLM itself: {cell.engine_cpu * 1000:.3g} ms"
    return [
        row_of_rounds(f"{what}: throughput ratio", cell.ratios, "", f"target {TARGET}; {direct}{failed}"),
        Row(f"{what}: gateway CPU per request", cell.gateway_cpu * 1000, "ms", cpu),
    ]


async def measure_first_token(arms: Arms, tokens: int, rate: float) -> list[Row]:
    """Time to the first token at `rate` requests a second, and what the gateway adds to it."""
    count = max(1, round(rate * OPEN_SECONDS))
    legs = [
        leg
        for number in range(OPEN_ROUNDS)
        for leg in arms.pair(count, tokens=tokens, stream=True, seed=90_000 + number, rate=rate)
    ]
    ran = await run_load(legs)
    direct, through = [[_first(one) for one in _named(ran, name)] for name in ("direct", "gateway")]
    note = f"open loop, {rate:.3g} requests/s, half of saturation, {tokens} tokens, streamed"
    rows = [
        row_of_rounds(
            f"time to first token, added, {name}",
            [1000 * (_at(mine, share) - _at(straight, share)) for straight, mine in zip(direct, through, strict=True)],
            "ms",
            note,
        )
        for name, share in (("p50", 0.5), ("p99", 0.99))
    ]
    for arm, rounds in (("straight", direct), ("through the gateway", through)):
        pooled = [one for each in rounds for one in each]
        rows += [
            row_of_times(f"time to first token, {arm}, {name}", pooled, share, f"{len(pooled)} requests")
            for name, share in (("p50", 0.5), ("p99", 0.99))
        ]
    failed = sum(len(one.answers) - len(one.good) for one in ran)
    return [*rows, Row("time to first token, failed requests", float(failed), "requests", note)]


def gpu_row() -> Row:
    return Row("the same on a GPU", None, "", "no GPU was lent")


def _named(ran: Sequence[Ran], name: str) -> list[Ran]:
    return [one for one in ran if one.name == name]


def _first(ran: Ran) -> list[float]:
    return [one.first for one in ran.good if one.first is not None]


def _at(values: Sequence[float], share: float) -> float:
    found = percentile(values, share)
    if found is None:
        raise RuntimeError("a round without a single answer")
    return found


if __name__ == "__main__":
    main()
