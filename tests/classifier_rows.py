"""Rows for classifier tests: three small routes and some texts that belong to none, made from templates."""

from __future__ import annotations

import random

from adapters.rows import LabelledText

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
    makers = {
        "sql": lambda: f"select the {rng.choice(COLUMNS)} of {rng.choice(TABLES)} where {rng.choice(COLUMNS)} is over "
        f"{rng.randrange(90)}",
        "booking": lambda: f"please book {rng.choice(PLACES)} for {rng.randrange(2, 9)} people {rng.choice(DAYS)} at "
        f"{rng.randrange(1, 12)}",
        "regex": lambda: f"lines with {rng.choice(SHAPES)} before {rng.choice(SHAPES)} at least {rng.randrange(9)} "
        "times",
    }
    rows: dict[LabelledText, None] = {}
    for label, make in makers.items():
        wanted = len(rows) + per_route
        while len(rows) < wanted:
            rows[LabelledText(make(), label)] = None
    return list(rows)


def base_rows() -> list[LabelledText]:
    return [LabelledText(text, "base") for text in TALK]
