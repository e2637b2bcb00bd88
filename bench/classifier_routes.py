"""Many routes out of real text: a route is a pair of CLINC150 intents, its texts ask for both in one breath.

A text is a sentence of the first intent, ` and ` and a sentence of the second. 150 intents make 11,175 pairs, so up to
that many routes; which pairs and which sentences is drawn by seed. Fitted texts are made of training sentences, judged
ones of validation or test sentences.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np

from adapters.rows import LabelledText

from .classifier_data import NEGATIVES, Rows, Task, rows_by_label

Pair = tuple[str, str]


def compound_routes(task: Task, count: int, rows: int, judged: int) -> tuple[list[LabelledText], list[LabelledText]]:
    """`rows` rows dealt evenly to `count` routes to fit on, and `judged` rows likewise. Raises `ValueError`."""
    pairs = list(itertools.combinations(sorted({row.label for row in task.train}), 2))
    if count > len(pairs):
        raise ValueError(f"{count} routes asked for, {len(pairs)} pairs of intents there are")
    random = np.random.default_rng(0)
    chosen = [pairs[at] for at in random.permutation(len(pairs))[:count]]
    fresh = [row for fold in task.folds for row in fold.judged if row.label not in NEGATIVES]
    return list(_deal(chosen, task.train, rows, random)), list(_deal(chosen, fresh, judged, random))


def _deal(pairs: Sequence[Pair], source: Rows, count: int, random: np.random.Generator) -> Iterator[LabelledText]:
    """`count` rows, no route more than one ahead of another and no text twice within one."""
    sentences = rows_by_label(source)
    drawn: set[tuple[int, str]] = set()
    made = 0
    while made < count:
        for number, (first, second) in enumerate(pairs[: count - made]):
            text = f"{_pick(sentences[first], random)} and {_pick(sentences[second], random)}"
            if (number, text) not in drawn:
                drawn.add((number, text))
                made += 1
                yield LabelledText(text, f"route-{number}")


def _pick(rows: Rows, random: np.random.Generator) -> str:
    return rows[int(random.integers(len(rows)))].text
