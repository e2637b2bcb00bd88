"""Many routes out of real text: a route is a pair of CLINC150 intents, its texts ask for both in one breath.

A text is a sentence of the first intent, ` and ` and a sentence of the second. 150 intents make 11,175 pairs, so up to
that many routes; which pairs and which sentences is drawn by seed. Fitted texts are made of training sentences,
those that calibrate or are judged of the sentences of the first fold that may be.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapters.rows import LabelledText

from .classifier_data import Rows, Task, rows_by_label

Pair = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Compound:
    """Rows of the same routes, made of sentences that no other of the three has."""

    fitted: Rows
    calibration: Rows
    judged: Rows


def compound_routes(task: Task, routes: int, *, fitted: int, calibration: int, judged: int) -> Compound:
    """So many rows of each kind, dealt evenly to `routes` routes; fewer where the sentences do not make them.

    Raises `ValueError` where the pairs are too few.
    """
    pairs = list(itertools.combinations(sorted({row.label for row in task.train}), 2))
    if routes > len(pairs):
        raise ValueError(f"{routes} routes asked for, {len(pairs)} pairs of intents there are")
    random = np.random.default_rng(0)
    chosen = [pairs[at] for at in random.permutation(len(pairs))[:routes]]
    fold = task.folds[0]
    counts = ((task.train, fitted), (fold.calibration, calibration), (fold.judged, judged))
    return Compound(*(_dealt(chosen, source, count, random) for source, count in counts))


def _dealt(pairs: Sequence[Pair], source: Rows, count: int, random: np.random.Generator) -> Rows:
    """Up to `count` rows, the first of every route, then the second, and so on; no text twice within a route."""
    sentences = rows_by_label(source)
    sizes = [len(sentences[first]) * len(sentences[second]) for first, second in pairs]
    orders = [random.choice(size, min(size, -(-count // len(pairs))), replace=False) for size in sizes]
    rounds = itertools.zip_longest(*orders)
    dealt = ((number, at) for one in rounds for number, at in enumerate(one) if at is not None)
    return [_row(number, pairs[number], int(at), sentences) for number, at in itertools.islice(dealt, count)]


def _row(number: int, pair: Pair, at: int, sentences: Mapping[str, Rows]) -> LabelledText:
    first, second = (sentences[intent] for intent in pair)
    text = f"{first[at % len(first)].text} and {second[at // len(first)].text}"
    return LabelledText(text, f"route-{number}")
