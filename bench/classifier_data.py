"""The labelled texts that classifiers are measured on, and who may see which of them (SCIENCE.md §8).

Weights see `train` alone. With `dev` a data set's validation rows are cut in two and each half is judged by what the
other half calibrates; with `test` all of them calibrate and the test rows are judged. CLINC150's `oos_val` and
`oos_test` are validation and test: never fitted on.
"""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from adapters.classifier_evidence import NEGATIVE_LABELS
from adapters.rows import LabelledText, read_labelled

Split = Literal["dev", "test"]
Rows = Sequence[LabelledText]
BANKING77_DEV_SHARE = 0.1
_NO_ROWS: Rows = ()


@dataclass(frozen=True, slots=True)
class Fold:
    """What calibrates and what is judged; no row is in both."""

    calibration: Rows
    judged: Rows


@dataclass(frozen=True, slots=True)
class Task:
    """A data set: `oos_train` are texts of no route that may be fitted on; `folds` are judged apart and averaged."""

    name: str
    train: Rows
    folds: Sequence[Fold]
    oos_train: Rows = _NO_ROWS

    @property
    def judged(self) -> list[LabelledText]:
        """The judged in-scope rows of all folds, for what is calibrated on nothing but its own rows."""
        return [row for fold in self.folds for row in fold.judged if row.label not in NEGATIVE_LABELS]


def clinc150(data: Path, split: Split) -> Task:
    """150 intents, 100 rows each, and texts of none."""
    found = json.loads((data / "clinc150" / "data_full.json").read_bytes())
    parts = {name: _named(found[name]) for name in ("train", "oos_train", "val", "oos_val")}
    judged = _named(found["test"] + found["oos_test"]) if split == "test" else None
    folds = _folds([*parts["val"], *parts["oos_val"]], judged)
    return Task("CLINC150", parts["train"], folds, parts["oos_train"])


def banking77(data: Path, split: Split) -> Task:
    """77 intents of one domain; validation is a stratified tenth of the training file."""
    train, validation = _stratified(_banking77(data, "train"), BANKING77_DEV_SHARE)
    return Task("BANKING77", train, _folds(validation, _banking77(data, "test") if split == "test" else None))


def suite(data: Path, split: Split) -> Task:
    """Eight tasks and texts of none (`base`), which are in its training rows too."""
    rows = {
        part: _named((row.text, row.label) for row in read_labelled(data / "suite" / f"router_{part}.jsonl"))
        for part in ("train", "dev", *(["test"] if split == "test" else []))
    }
    return Task("suite router", rows["train"], _folds(rows["dev"], rows.get("test")))


def few_shot(rows: Rows, shots: int, draw: int) -> list[LabelledText]:
    """`shots` rows of every label, drawn without replacement by `numpy.random.default_rng(draw)`, labels in order."""
    random = np.random.default_rng(draw)
    by_label = rows_by_label(rows)
    return [
        by_label[label][at]
        for label in sorted(by_label)
        for at in random.choice(len(by_label[label]), shots, replace=False)
    ]


def first_labels(task: Task, count: int) -> Task:
    """For a trial: `count` labels and the negatives alone."""
    kept = set(sorted({row.label for row in task.train} - NEGATIVE_LABELS)[:count]) | NEGATIVE_LABELS

    def cut(rows: Rows) -> list[LabelledText]:
        return [row for row in rows if row.label in kept]

    folds = [Fold(cut(fold.calibration), cut(fold.judged)) for fold in task.folds]
    return replace(task, name=f"{task.name}, {count} labels", train=cut(task.train), folds=folds)


def rows_by_label(rows: Rows) -> Mapping[str, list[LabelledText]]:
    """Rows of each label in their order."""
    found: dict[str, list[LabelledText]] = defaultdict(list)
    for row in rows:
        found[row.label].append(row)
    return found


def _folds(validation: Rows, test: Rows | None) -> list[Fold]:
    if test is not None:
        return [Fold(validation, test)]
    first, second = _stratified(validation, 0.5)
    return [Fold(first, second), Fold(second, first)]


def _stratified(rows: Rows, share: float) -> tuple[list[LabelledText], list[LabelledText]]:
    """(the rest, about `share` of every label and at least one row), drawn by `default_rng(0)`."""
    random = np.random.default_rng(0)
    rest: list[LabelledText] = []
    drawn: list[LabelledText] = []
    for _, own in sorted(rows_by_label(rows).items()):
        shuffled = [own[at] for at in random.permutation(len(own))]
        count = max(1, round(share * len(own)))
        drawn += shuffled[:count]
        rest += shuffled[count:]
    return rest, drawn


def _banking77(data: Path, part: str) -> list[LabelledText]:
    with (data / "banking77" / f"{part}.csv").open(encoding="utf-8", newline="") as file:
        return _named((row["text"], row["category"]) for row in csv.DictReader(file))


def _named(pairs: Iterator[tuple[str, str]] | Sequence[tuple[str, str]]) -> list[LabelledText]:
    """Rows whose labels are route names: `reverted_card_payment?` becomes `reverted-card-payment`."""
    return [LabelledText(text, label.lower().replace("_", "-").strip("?")) for text, label in pairs]
