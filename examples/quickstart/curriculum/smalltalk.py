"""Greetings and short general questions, so that the base has something to say when no route fits."""

import random

from ..lexicon import Lexicon
from ..wording import choose_wording
from .exchange import Exchange

_TALK = (
    ("[Hello|Hi|Good morning|Good day|Hey][| there][|!|.]", "Hello! What can I do for you?"),
    ("[Thank you|Thanks|Many thanks][|!|.| very much]", "You are welcome."),
    ("[Who|What] are you?", "I am a small language model."),
    ("[What can you do|How can you help|What do you know]?", "I can copy, list, count, compare and fill in forms."),
    ("[Good bye|Bye|See you|Farewell][|!|.]", "Good bye!"),
    ("[How are you|How do you do][?| today?]", "I am well, thank you."),
)
_OPPOSITES = """
hot cold, big small, up down, early late, old young, open shut, rich poor, hard soft, light dark, high low, long short,
good bad, wet dry, fast slow, full empty, near far, first last, happy sad, strong weak, thick thin, day night,
true false, left right, clean dirty
"""


def smalltalk(rng: random.Random, _: Lexicon) -> Exchange:
    """A greeting and its answer."""
    wording, answer = rng.choice(_TALK)
    return Exchange(choose_wording(wording, rng), answer)


def opposite(rng: random.Random, _: Lexicon) -> Exchange:
    """The opposite of a common word."""
    pair = rng.choice(_OPPOSITES.split(",")).split()
    rng.shuffle(pair)
    wording = choose_wording("[What is the opposite of|The opposite of|Name the opposite of] ", rng)
    return Exchange(f"{wording}{pair[0]}?", pair[1])
