"""Many adapters in flight at once: throughput and p99 against one adapter and against the base, straight to vLLM.

    python -m bench.vllm_adapters [--rounds 3] [--seconds 3]

64 closed-loop clients share 1, 4, 16 or 64 adapters, or ask the base. Two engines, one after the other, as `max_loras`
(how many different adapters one batch may hold) is fixed when vLLM starts. All adapters are loaded before; arms take
turns, and ratios are of one round.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Mapping

from adapters.home import Home

from .engines import BASE_ID, Target, engine, mixed_asks, require_vllm
from .load import Leg, Ran, run_load
from .random_routes import publish_routes
from .results import Row, write_results
from .spread import row_of_rounds, row_of_times

IN_FLIGHT = (1, 4, 16, 64)
MAX_LORAS = (4, 16)
CONCURRENCY = 64
TOKENS = 32


def main() -> None:
    """Measure both engines and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one arm in one round, about")
    arguments = parser.parse_args()
    require_vllm()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        home = Home.at(folder)
        published = publish_routes(home, [f"task-{number}" for number in range(max(IN_FLIGHT))])
        names = [versions[0] for versions in published.values()]
        for max_loras in MAX_LORAS:
            flags = ("--max-loras", str(max_loras), "--max-cpu-loras", str(max(IN_FLIGHT)))
            with engine(home, f"engine-{max_loras}", *flags) as running:
                target = Target("engine", running.url, running.key)
                ran = asyncio.run(measure(target, names, arguments.rounds, arguments.seconds))
            rows += rows_of(max_loras, ran)
    command = f"python -m bench.vllm_adapters --rounds {arguments.rounds} --seconds {arguments.seconds:g}"
    write_results("vllm_adapters", "vLLM: 1 to 64 different adapters in flight", rows, command)


async def measure(target: Target, names: list[str], rounds: int, seconds: float) -> dict[str, list[Ran]]:
    """The rounds of each arm."""
    arms = {"base": [BASE_ID], **{f"{count} adapters": names[:count] for count in IN_FLIGHT}}
    loaded = target.leg(mixed_asks(names, len(names), tokens=1, seed=1), concurrency=4)
    warm = target.leg(mixed_asks(names, 2 * CONCURRENCY, tokens=TOKENS, seed=2), concurrency=CONCURRENCY)
    slowest = (await run_load([loaded, warm]))[1]
    count = max(1, round(len(slowest.answers) / slowest.seconds * seconds / CONCURRENCY)) * CONCURRENCY
    legs: list[Leg] = []
    for number in range(rounds):
        turn = list(arms) if number % 2 else list(reversed(arms))
        for arm in turn:
            asks = mixed_asks(arms[arm], count, tokens=TOKENS, seed=100 + number)
            legs.append(Target(arm, target.url, target.key).leg(asks, concurrency=CONCURRENCY))
    ran = await run_load(legs)
    return {arm: [one for one in ran if one.name == arm] for arm in arms}


def rows_of(max_loras: int, ran: Mapping[str, list[Ran]]) -> list[Row]:
    """Throughput, its ratios and p99 of each arm."""
    rows = []
    for arm, rounds in ran.items():
        what = f"max_loras {max_loras}, {arm}"
        rows.append(row_of_rounds(f"{what}: throughput", [one.tokens_a_second for one in rounds], "tokens/s"))
        for other in ("base", "1 adapters"):
            if arm not in (other, "base"):
                against = zip(rounds, ran[other], strict=True)
                ratios = [one.tokens_a_second / beside.tokens_a_second for one, beside in against]
                shown = other.replace("1 adapters", "one adapter")
                rows.append(row_of_rounds(f"{what}: throughput against {shown}", ratios, ""))
        answers = [one for each in rounds for one in each.answers]
        failed = sum(one.problem is not None for one in answers)
        note = f"{len(answers)} requests, {CONCURRENCY} at a time, {TOKENS} tokens, {failed} failed"
        rows.append(row_of_times(f"{what}: whole answer, p99", [one.seconds for one in answers], 0.99, note))
    return [Row(row.what.replace("1 adapters", "1 adapter"), row.value, row.unit, row.note) for row in rows]


if __name__ == "__main__":
    main()
