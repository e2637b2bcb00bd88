"""Rows of a task and how a split is drawn: seeded, without repeats, with the template of every row kept for the
checks.

A *template* is a row's sentence with its slots unfilled: the surface wording. Splits draw their wordings from
separate phrase banks, so no phrase of the held-out split occurs in `train` or `select`; what they share are the
words that carry the meaning (`average`, `more than`, `starts with`, week days), which are the vocabulary of the
task.
"""

import json
import random
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from .entities import Split
from .lexicon import load_lexicon


@dataclass(frozen=True)
class Row:
    """One training or evaluation item; `template` and `entities` are for the checks and are not written to files."""

    input: str
    output: str
    template: str
    entities: frozenset[str]


Draw = Callable[[Split, random.Random], Row]


def draw_rows(draw: Draw, split: Split, count: int, seed: int) -> list[Row]:
    """`count` rows with different inputs. Raises RuntimeError where the banks cannot give so many."""
    rng = random.Random(f"{seed}/{split}")
    rows: dict[str, Row] = {}
    for _ in range(50 * count):
        row = draw(split, rng)
        rows.setdefault(row.input, row)
        if len(rows) == count:
            return list(rows.values())
    raise RuntimeError(f"only {len(rows)} different rows of {count} for split {split}: the phrase banks are too small")


def disturb_wording(wording: str, rng: random.Random, meaning: frozenset[str]) -> str:
    """Replace some of the words of a wording by words that mean nothing here, and put some in.

    Slots and the words in `meaning` stay. Training rows are made so in part, because an adapter that has seen only
    clean wordings leans on them, and then misses the slots of a wording it has never seen.
    """
    words = load_lexicon().words

    def replace_word(match: re.Match[str]) -> str:
        word = match.group()
        if not word.startswith("{") and word not in meaning and rng.random() < 0.5:
            word = rng.choice(words)
        return f"{rng.choice(words)} {word}" if rng.random() < 0.1 else word

    return re.sub(r"\{\w+\}|[a-zA-Z]+", replace_word, wording)


def begin_sentence(text: str) -> str:
    """The text with a capital first letter."""
    return text[:1].upper() + text[1:]


def write_jsonl(path: Path, records: Iterable[dict[str, str]]) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
