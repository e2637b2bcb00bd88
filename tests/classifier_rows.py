"""Rows for classifier tests: three small routes and some texts that belong to none, made from templates."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from adapters.rows import LabelledText
from router.classify.encoding import EncoderRef
from router.classify.features import Floats

TABLES = ("users", "orders", "invoices", "cities", "teams", "albums", "flights", "books")
COLUMNS = ("name", "age", "price", "country", "year", "title", "distance", "score")
DAYS = ("monday", "tuesday", "friday", "tomorrow", "tonight", "next week")
PLACES = ("a table", "a room", "a taxi", "a flight", "two seats", "a court")
SHAPES = ("digits", "capital letters", "vowels", "commas", "the word cat", "a number")
TALK = (
    "hello, how are you",
    "what is the capital of France",
    "tell me a joke about penguins",
    "write a short poem about autumn",
    "why is the sky blue",
    "who painted the Mona Lisa",
    "thanks, that was helpful",
    "explain photosynthesis simply",
    "recommend me a good novel",
    "what should I cook for dinner",
)


def routes_rows(per_route: int = 30, seed: int = 0) -> list[LabelledText]:
    """`per_route` distinct rows of each of `sql`, `booking` and `regex`."""
    rng = random.Random(seed)
    rows: dict[LabelledText, None] = {}
    for label in ("sql", "booking", "regex"):
        wanted = len(rows) + per_route
        while len(rows) < wanted:
            rows[LabelledText(_text(label, rng), label)] = None
    return list(rows)


class Meanings:
    """An encoder that knows three meanings by words that no example above holds, and calls every text what it is."""

    ref = EncoderRef("meanings", "0" * 64, "fp32", 4, 128)
    words = (("select", "query"), ("book", "reserve"), ("lines", "match"))

    def __init__(self) -> None:
        self.texts: list[str] = []

    def encode(self, texts: Sequence[str]) -> Floats:
        """(texts, 4): the unit vector of the first meaning a text holds a word of, else the fourth one."""
        self.texts += texts
        own = [
            [any(word in text for word in known) for known in self.words].index(True)
            if any(word in text for known in self.words for word in known)
            else 3
            for text in texts
        ]
        return np.eye(4, dtype=np.float32)[own].reshape(-1, 4)


def _text(label: str, rng: random.Random) -> str:
    pick, number = rng.choice, rng.randrange(2, 90)
    if label == "sql":
        return f"select the {pick(COLUMNS)} of {pick(TABLES)} where {pick(COLUMNS)} is over {number}"
    if label == "booking":
        return f"please book {pick(PLACES)} for {number % 9 + 1} people {pick(DAYS)} at {number % 12 + 1}"
    return f"lines with {pick(SHAPES)} before {pick(SHAPES)} at least {number % 9} times"


def base_rows() -> list[LabelledText]:
    return [LabelledText(text, "base") for text in TALK]
