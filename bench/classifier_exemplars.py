"""Single exemplars at 5,000 routes: is a stored sentence found again when it is typed a little differently?

    python -m bench.classifier_exemplars [--encoder SOURCE] [--split test] [--routes 5000]

Each route has one sentence, no classifier is fitted: memory alone decides. The sentences are drawn by seed from the
training rows of CLINC150 and BANKING77 that have four words or more; `dev` and `test` draw different ones, as far as
there are enough. A query is its sentence without one word, or with two typos (`classifier_queries`). Sentences that
differ by that very word are misses like any other.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from statistics import fmean

import numpy as np

from adapters.exemplars import Exemplar
from router.classify.judge import Judge
from router.classify.memory import Memory

from .classifier_arms import Remembered
from .classifier_command import encoder_of, parser_of, publish
from .classifier_data import banking77, clinc150
from .classifier_queries import drop_word, with_typos
from .data import find_data
from .results import Row

LEAST_WORDS = 4
SEEDS = {"dev": 0, "test": 1}
Change = Callable[[str, np.random.Generator], str]
CHANGES: dict[str, tuple[Change, str]] = {
    "one word dropped": (drop_word, "≥ 98 (sparse)"),
    "two typos": (lambda text, random: with_typos(text, 2, random), "≥ 96 (sparse)"),
    "as it is stored": (lambda text, _: text, ""),
}


def main() -> None:
    """Store the sentences, ask for each, and write the results."""
    parser = parser_of(__doc__)
    parser.add_argument("--routes", type=int, default=5_000, help="of one sentence each")
    arguments = parser.parse_args()
    name = "encoder" if arguments.encoder else "sparse"
    title = f"Single exemplars, memory alone, {'with encoder' if arguments.encoder else 'sparse only'}"
    publish(f"classifier_exemplars_{name}", title, table(arguments), arguments)


def table(arguments: argparse.Namespace) -> Iterator[Row]:
    """Recall of each kind of change."""
    encoder = encoder_of(arguments)
    stored = sentences(arguments.routes, SEEDS[arguments.split])
    exemplars = [Exemplar(f"route-{number}", text, "operator") for number, text in enumerate(stored)]
    judge = Judge(None, Memory.build(exemplars, encoder=encoder))
    for what, (change, target) in CHANGES.items():
        random = np.random.default_rng(0)
        asked = [change(text, random) for text in stored]
        top, decided = recalls(judge, asked, encoder)
        note = f"{len(stored):,} routes, one query each; nearest exemplar {100 * top:.2f} %"
        note += f"; target {target}" if target else ""
        yield Row(f"{what}, recall, final decision", 100 * decided, "%", note)


def sentences(count: int, seed: int) -> list[str]:
    """`count` different sentences, drawn by seed."""
    data = find_data()
    rows = [*clinc150(data, "dev").train, *banking77(data, "dev").train]
    distinct = {" ".join(row.text.lower().split()): row.text for row in rows}
    long_enough = [text for _, text in sorted(distinct.items()) if len(text.split()) >= LEAST_WORDS]
    drawn = np.random.default_rng(seed).permutation(len(long_enough))[:count]
    return [long_enough[at] for at in drawn]


def recalls(judge: Judge, asked: Sequence[str], encoder: Remembered | None) -> tuple[float, float]:
    """(share whose own exemplar is the nearest, share that is sent to its route); query i is of `route-i`."""
    vectors = encoder.encode(asked) if encoder else None
    nearest, decided = [], []
    for number, text in enumerate(asked):
        vector = None if vectors is None else vectors[number]
        scores = judge.judge([text], None if vector is None else vector[None])
        matches = judge.memory.nearest(text, vector, k=1)
        nearest.append(bool(matches) and matches[0].label == f"route-{number}")
        decided.append(scores.route == f"route-{number}" and not scores.abstains)
    return fmean(nearest), fmean(decided)


if __name__ == "__main__":
    main()
