"""A one-line grammar for surface wording: `[a|b]` chooses, nesting allowed, `{slot}` is filled afterwards."""

import random
from functools import lru_cache

Choice = tuple["Sequence", ...]
Sequence = tuple[str | Choice, ...]


@lru_cache(maxsize=4096)
def parse_wording(wording: str) -> Sequence:
    """Read a wording into text pieces and choices; raises ValueError on unbalanced brackets and on `|` outside
    them.
    """
    sequence, rest = _parse(wording, 0, nested=0)
    if rest != len(wording) or any(isinstance(part, str) and "|" in part for part in sequence):
        raise ValueError(f"a choice outside brackets in {wording!r}")
    return sequence


def _parse(wording: str, start: int, nested: int) -> tuple[Sequence, int]:
    parts: list[str | Choice] = []
    text_start = place = start
    while place < len(wording) and not (nested and wording[place] in "|]"):
        if wording[place] == "]":
            break
        if wording[place] == "[":
            if place > text_start:
                parts.append(wording[text_start:place])
            options: list[Sequence] = []
            while True:
                option, place = _parse(wording, place + 1, nested + 1)
                options.append(option)
                if place >= len(wording):
                    raise ValueError(f"unclosed bracket in {wording!r}")
                if wording[place] == "]":
                    break
            parts.append(tuple(options))
            text_start = place + 1
        place += 1
    if place > text_start:
        parts.append(wording[text_start:place])
    return tuple(parts), place


def choose_wording(wording: str, rng: random.Random) -> str:
    """One of the surface forms of a wording; slots stay as they are."""
    return _choose(parse_wording(wording), rng)


def _choose(sequence: Sequence, rng: random.Random) -> str:
    return "".join(part if isinstance(part, str) else _choose(rng.choice(part), rng) for part in sequence)


def all_wordings(wording: str) -> set[str]:
    """Every surface form of a wording; slots stay as they are."""
    return _enumerate(parse_wording(wording))


def _enumerate(sequence: Sequence) -> set[str]:
    forms = {""}
    for part in sequence:
        endings = {part} if isinstance(part, str) else set().union(*(_enumerate(option) for option in part))
        forms = {form + ending for form in forms for ending in endings}
    return forms


def fill_slots(wording: str, slots: dict[str, str]) -> str:
    """Put values into `{slot}` places; braces that name no slot stay (outputs contain braces of their own)."""
    for name, value in slots.items():
        wording = wording.replace("{" + name + "}", value)
    return wording


def say(wording: str, rng: random.Random, **slots: str) -> str:
    """Choose a surface form and fill its slots."""
    return fill_slots(choose_wording(wording, rng), slots)
