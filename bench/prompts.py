"""Prompts that no two requests share, so that no cache flatters anybody."""

from __future__ import annotations

import random

_WORDS = (
    "river",
    "table",
    "count",
    "price",
    "garden",
    "seven",
    "lantern",
    "winter",
    "paper",
    "ticket",
    "harbour",
    "copper",
)


def distinct_prompts(count: int, seed: int, words: int = 20) -> list[str]:
    """`count` texts of about `words` words, all different from the first word on."""
    chosen = random.Random(seed)
    return [f"{seed}-{number} " + " ".join(chosen.choices(_WORDS, k=words)) for number in range(count)]
