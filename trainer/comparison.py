"""Base and adapter on the same items; the base is scored once per file and metric."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from adapters.evidence import Evaluation, Item, Score
from adapters.rows import sha256_json

from .data import Dataset
from .decisions import Decisions
from .evaluate import Evaluator, Scored
from .folder import write_text

OnBatch = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Compared:
    """An evaluation with what both models wrote, item by item in the data set's order."""

    evaluation: Evaluation
    dataset: Dataset
    base: Sequence[Scored]
    adapter: Sequence[Scored]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares the adapter that `evaluator.model` carries with the base under it.

    `route` is the name the decisions call the adapter by. `cache` is a folder for the base's scores.
    """

    evaluator: Evaluator
    base_fingerprint: str
    route: str
    decisions: Decisions | None
    cache: Path
    on_batch: OnBatch

    def compare(self, dataset: Dataset) -> Compared:
        base = self._base_scores(dataset)
        what = f"adapter on {dataset.name}"
        adapter = self.evaluator.score(dataset.examples, lambda done: self.on_batch(what, done, len(dataset.examples)))
        items = tuple(
            Item(
                row=example.row,
                base=mine.score,
                adapter=theirs.score,
                routed_to=self.decisions.routed_to(example.row, self.route) if self.decisions else None,
            )
            for example, mine, theirs in zip(dataset.examples, base, adapter, strict=True)
        )
        evaluation = Evaluation(dataset.name, dataset.file_digest, self.evaluator.metric, items, dataset.part)
        return Compared(evaluation, dataset, base, adapter)

    def _base_scores(self, dataset: Dataset) -> list[Scored]:
        file = self.cache / f"base-{self._key(dataset)}.json"
        if file.is_file():
            return [_scored(row) for row in json.loads(file.read_text(encoding="utf-8"))]
        what = f"base on {dataset.name}"
        with self.evaluator.model.disable_adapter():
            scored = self.evaluator.score(
                dataset.examples, lambda done: self.on_batch(what, done, len(dataset.examples))
            )
        write_text(file, json.dumps([asdict(one) for one in scored]))
        return scored

    def _key(self, dataset: Dataset) -> str:
        evaluator = self.evaluator
        how = [self.base_fingerprint, dataset.file_digest, dataset.part, evaluator.metric, evaluator.max_new_tokens]
        return sha256_json(how)[:32]


def _scored(row: dict[str, object]) -> Scored:
    score = row["score"]
    assert isinstance(score, dict)  # noqa: S101 - written by this module
    return Scored(Score(**score), str(row["output"]))
