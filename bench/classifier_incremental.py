"""Class-incremental retention: CLINC150 arrives in ten steps of 15 intents, the order drawn by seed.

    python -m bench.classifier_incremental [--encoder SOURCE] [--split test] [--seeds 10] [--exemplars 5]

No refit: the classifier is fitted on the first step alone, and the rows of the later intents are exemplars in memory,
so many of each. Refit: fitted again after every step on all rows that have come; since a refit starts from nothing, the
last one alone is run, and its digest compared with the joint fit's. Retention = accuracy on all 150 intents at the end
÷ that of the joint fit, which sees all training rows at once and has no memory.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from statistics import fmean, stdev

import numpy as np

from adapters.classifier_evidence import NEGATIVE_LABELS
from adapters.exemplars import Exemplar
from adapters.rows import LabelledText
from router.classify.classifier import Classifier
from router.classify.fit import DEFAULT_COVERAGE, fit_classifier
from router.classify.judge import Judge
from router.classify.memory import Memory

from .classifier_arms import Remembered
from .classifier_command import encoder_of, parser_of, publish
from .classifier_data import Rows, Task, clinc150, first_labels, rows_by_label
from .data import find_data
from .results import Row

STEPS = 10
Accuracies = tuple[float, float]  # top route, final decision


def main() -> None:
    """Measure retention and write the results."""
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=int, default=10, help="orders of the intents")
    parser.add_argument("--exemplars", type=int, action="append", help="of each later intent; may be repeated")
    parser.add_argument("--labels", type=int, help="a trial on so many intents")
    arguments = parser.parse_args()
    name = "encoder" if arguments.encoder else "sparse"
    title = f"Class-incremental retention on CLINC150, {'with encoder' if arguments.encoder else 'sparse only'}"
    publish(f"classifier_incremental_{name}", title, table(arguments), arguments)


def table(arguments: argparse.Namespace) -> Iterator[Row]:
    """The joint fit, the refit after the last step, and memory after the last step for each number of exemplars."""
    encoder = encoder_of(arguments)
    task = clinc150(find_data(), arguments.split)
    task = task if arguments.labels is None else first_labels(task, arguments.labels)
    joint = fit(task, task.train, encoder)
    of_joint = accuracies(Judge(joint, Memory.build([])), task, encoder)
    yield Row("joint fit, accuracy, top route", 100 * of_joint[0], "%", "all rows at once")
    yield Row("joint fit, accuracy, final decision", 100 * of_joint[1], "%", f"{100 * DEFAULT_COVERAGE:g} % to be kept")
    refit = fit(task, [row for step in steps(task, 0) for row in step], encoder)
    same = "the joint fit's digest" if refit.digest == joint.digest else "another digest than the joint fit's"
    of_refit = accuracies(Judge(refit, Memory.build([])), task, encoder)
    yield from retention_rows("refit every step", [of_refit], of_joint, same)
    for count in arguments.exemplars or (5, 100):
        found = [without_refit(task, seed, count, encoder) for seed in range(arguments.seeds)]
        yield from retention_rows(f"no refit, {count} exemplars of each later intent", found, of_joint, "")


def retention_rows(name: str, found: Sequence[Accuracies], joint: Accuracies, note: str) -> Iterator[Row]:
    for at, what in enumerate(("top route", "final decision")):
        ratios = [one[at] / joint[at] for one in found]
        spread = f"sd {stdev(ratios):.4f} of {len(ratios)} seeds" if len(ratios) > 1 else "one order"
        mean = f"accuracy {100 * fmean(one[at] for one in found):.2f} %"
        yield Row(f"{name}, retention, {what}", fmean(ratios), "", "; ".join(filter(None, [mean, spread, note])))


def steps(task: Task, seed: int) -> list[list[LabelledText]]:
    """The training rows of each step's intents."""
    by_label = rows_by_label(task.train)
    order = np.random.default_rng(seed).permutation(sorted(by_label))
    return [[row for label in labels for row in by_label[str(label)]] for labels in np.array_split(order, STEPS)]


def without_refit(task: Task, seed: int, count: int, encoder: Remembered | None) -> Accuracies:
    """Fitted on the first step; `count` rows of each intent that comes later are exemplars, the first ones too."""
    first, *later = steps(task, seed)
    classifier = fit(task, first, encoder)
    stored = [
        *first,
        *(row for step in later for own in rows_by_label(step).values() for row in own[:count]),
    ]
    exemplars = [Exemplar(row.label, row.text, "operator") for row in stored]
    memory = Memory.build(exemplars, is_seen=classifier.has_row, encoder=encoder)
    return accuracies(Judge(classifier, memory), task, encoder)


def fit(task: Task, rows: Rows, encoder: Remembered | None) -> Classifier:
    """Fitted on `rows`, calibrated on the in-scope validation rows of their labels."""
    labels = {row.label for row in rows}
    calibration = [row for row in task.folds[0].calibration if row.label in labels]
    return fit_classifier(rows, coverage=DEFAULT_COVERAGE, calibration=calibration, encoder=encoder)


def accuracies(judge: Judge, task: Task, encoder: Remembered | None) -> Accuracies:
    """Of the in-scope rows that are judged."""
    judged = [row for row in task.folds[0].judged if row.label not in NEGATIVE_LABELS]
    vectors = encoder.encode([row.text for row in judged]) if encoder else None
    found = [
        judge.judge([row.text], None if vectors is None else vectors[at : at + 1]) for at, row in enumerate(judged)
    ]
    top = [scores.route == row.label for scores, row in zip(found, judged, strict=True)]
    final = [right and not scores.abstains for right, scores in zip(top, found, strict=True)]
    return fmean(top), fmean(final)


if __name__ == "__main__":
    main()
