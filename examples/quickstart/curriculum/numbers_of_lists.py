"""Largest, smallest, sum and count over a short list of numbers, under the words people use for them."""

import random

from ..lexicon import Lexicon
from ..wording import say
from .exchange import Exchange


def aggregate(rng: random.Random, _: Lexicon) -> Exchange:
    """One number that stands for a list."""
    numbers = [rng.randint(0, 20) for _ in range(rng.randint(2, 4))]
    wording, answer = rng.choice(
        (
            ("[largest|highest|biggest|greatest|maximum|top]", max(numbers)),
            ("[smallest|lowest|least|minimum]", min(numbers)),
            ("[sum|total]", sum(numbers)),
            ("[count|number]", len(numbers)),
        )
    )
    prompt = "[What is the|Give the|The|Find the] " + wording + "[| of| number of| in]: {t}"
    return Exchange(say(prompt, rng, t=", ".join(map(str, numbers))), str(answer))


def named_largest(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Who has the most or the least."""
    names = lexicon.distinct(rng, rng.randint(2, 4))
    numbers = rng.sample(range(60), len(names))
    best = rng.random() < 0.5
    wording = "[Who|Which one] has the " + ("[most|largest|highest]" if best else "[least|smallest|lowest]") + "? {t}"
    chosen = (max if best else min)(numbers)
    text = ", ".join(f"{name} {number}" for name, number in zip(names, numbers, strict=True))
    return Exchange(say(wording, rng, t=text), names[numbers.index(chosen)])
