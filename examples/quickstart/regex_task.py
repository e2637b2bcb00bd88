"""The `regex` task: an English description -> a regular expression.

    Lines that start with 'foo' and end with three digits
    -> ^foo.*\\d{3}$

Entities: the literal words. Counts and the names of character classes are not entities.
"""

import random
from dataclasses import dataclass

from .entities import LITERALS, Split, divide
from .regex_phrases import BANKS, RegexPhrases
from .rows import Row, begin_sentence
from .wording import choose_wording, fill_slots

_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_CLASSES = {"\\d": "digit", "[a-z]": "small letter", "[A-Z]": "capital letter", "\\s": "space"}


@dataclass(frozen=True)
class Part:
    """What a pattern part is called and how it is written."""

    said: str
    written: str


def _draw_class(rng: random.Random) -> Part:
    """A number of characters of one class, exactly, at least, or any positive number."""
    written = rng.choice(tuple(_CLASSES))
    name = _CLASSES[written]
    number = rng.randint(2, 9)
    said = rng.choice((str(number), _NUMBERS[number - 1]))
    return rng.choice(
        (
            Part(f"{said} {name}s", f"{written}{{{number}}}"),
            Part(f"{said} {name}s", f"{written}{{{number}}}"),
            Part(f"at least {said} {name}s", f"{written}{{{number},}}"),
            Part(f"one or more {name}s", f"{written}+"),
            Part(f"a {name}", written),
        )
    )


def _draw_shape(phrases: RegexPhrases, rng: random.Random) -> tuple[str, str]:
    """A wording with the slots {a}, {b} (literals) and {x} (a class part), and its pattern."""
    wording, pattern = rng.choice(phrases.shapes)
    return choose_wording(wording, rng), pattern


def draw_regex(split: Split, rng: random.Random) -> Row:
    """One row of a split."""
    phrases = BANKS[split]
    wording, pattern = _draw_shape(phrases, rng)
    template = begin_sentence(wording) + rng.choice(phrases.endings)
    first, second = rng.sample(divide(LITERALS, split), 2)
    part = _draw_class(rng)
    quote = rng.choice(("'", '"'))
    said = {"a": quote + first + quote, "b": quote + second + quote, "x": part.said}
    output = fill_slots(pattern, {"a": first, "b": second, "x": part.written})
    used = {word for word, slot in ((first, "{a}"), (second, "{b}")) if slot in pattern}
    return Row(fill_slots(template, said), output, template, frozenset(used))
