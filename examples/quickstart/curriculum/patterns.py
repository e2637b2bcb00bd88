"""Induction: a random transformation shown by examples, to be applied to something new."""

import random

from ..lexicon import Lexicon
from .exchange import Exchange
from .forms import draw_shape, fill_shape


def draw_carrier(rng: random.Random, lexicon: Lexicon, keys: list[str]) -> str:
    """A random sentence shape: the slots of `keys` in some order, carried by words that mean nothing here."""
    order = rng.sample(keys, len(keys))
    parts = [lexicon.word(rng)] if rng.random() < 0.7 else []
    for key in order:
        parts.append(f"[{key}]")
        parts.extend(lexicon.word(rng) for _ in range(rng.randint(0, 2)))
    return " ".join(parts)


def draw_transformation(rng: random.Random, lexicon: Lexicon, examples: int) -> list[Exchange]:
    """The same random transformation carried out `examples` times, with one or two surface wordings."""
    keys = [str(number) for number in range(1, rng.randint(1, 4) + 1)]
    carriers = [draw_carrier(rng, lexicon, keys) for _ in range(rng.choice((1, 1, 2)))]
    shape = draw_shape(rng, lexicon, rng.sample(keys, rng.randint(max(1, len(keys) - 1), len(keys))))
    exchanges = []
    for number in range(examples):
        record = dict(zip(keys, lexicon.distinct(rng, len(keys)), strict=True))
        carrier = carriers[number % len(carriers)]
        exchanges.append(Exchange(fill_shape(carrier, record), fill_shape(shape, record)))
    return exchanges


def shown_pattern(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Examples and the question in one prompt."""
    *shown, asked = draw_transformation(rng, lexicon, rng.randint(2, 4))
    sign = rng.choice((" => ", " -> ", " = ", "\n"))
    text = "\n".join(exchange.prompt + sign + exchange.answer for exchange in shown)
    return Exchange(f"{text}\n{asked.prompt}{sign}".rstrip(" "), asked.answer)


def word_family(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Continue a sequence of words that repeats."""
    cycle = lexicon.distinct(rng, rng.randint(2, 4))
    length = rng.randint(len(cycle) * 2, len(cycle) * 3)
    text = " ".join(cycle[place % len(cycle)] for place in range(length))
    return Exchange(rng.choice(("Go on: ", "What comes next: ", "Continue: ")) + text, cycle[length % len(cycle)])
