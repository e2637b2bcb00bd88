"""Steps of several things that take turns, so that a noisy machine disturbs all of them alike."""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Taken = TypeVar("Taken")
DRAWS = 1000


def take_turns(steps: Mapping[str, Callable[[], Taken]], rounds: int, *, warm: int) -> dict[str, list[Taken]]:
    """Rounds of one step of each, in another order every time; the first `warm` rounds are not counted."""
    taken: dict[str, list[Taken]] = {name: [] for name in steps}
    order = random.Random(0)
    for number in range(warm + rounds):
        names = list(steps)
        order.shuffle(names)
        for name in names:
            found = steps[name]()
            if number >= warm:
                taken[name].append(found)
        print(f"round {number + 1} of {warm + rounds}", file=sys.stderr, flush=True)
    return taken


def ratio_interval(rounds: int, ratio: Callable[[Sequence[int]], float]) -> tuple[float, float]:
    """The middle 95 % of `ratio`, a function of the numbers of the rounds, over redrawn rounds."""
    draw = random.Random(0)
    found = sorted(ratio(draw.choices(range(rounds), k=rounds)) for _ in range(DRAWS))
    return found[int(0.025 * DRAWS)], found[int(0.975 * DRAWS)]
