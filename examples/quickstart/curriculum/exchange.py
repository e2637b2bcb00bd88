"""One question and its one right answer, and the shape of everything that makes them."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from ..lexicon import Lexicon


@dataclass(frozen=True)
class Exchange:
    """A user turn and the assistant turn that answers it."""

    prompt: str
    answer: str


Maker = Callable[[random.Random, Lexicon], Exchange]

DELIMITERS = (
    ", ",
    " ",
    " | ",
    "; ",
    " / ",
    "-",
    " - ",
    ",",
    ":",
    " + ",
    " > ",
    "_",
    " and ",
    ". ",
    " = ",
    "|",
    "/",
    "*",
    " -> ",
    "\n",
)
BRACKETS = (
    ("(", ")"),
    ("[", "]"),
    ("{", "}"),
    ("<", ">"),
    ('"', '"'),
    ("'", "'"),
    ("**", "**"),
    ("`", "`"),
    ("^", "$"),
    ("#", "#"),
    ("\\", "\\"),
    ("<<", ">>"),
    ("{{", "}}"),
)
ORDINALS = ("first", "second", "third", "fourth", "fifth")
