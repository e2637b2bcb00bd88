"""Branchline's classifier with an encoder trained on the rows of each fit, as `classifier fit --finetune` does."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from adapters.rows import LabelledText
from router.classify.encoder.distilling import distil_encoder
from router.classify.encoder.layout import Layout, read_layout
from router.classify.encoder.opening import open_layout
from router.classify.encoder.training import tuning_for
from router.classify.encoder.tuning import tune_encoder
from router.classify.encoding import Precision
from router.classify.general import unclaimed_prompts
from router.classify.tuned_fit import fit_tuned

from .classifier_arms import Remembered, say
from .classifier_command import cache_of
from .classifier_data import Rows
from .classifier_measures import Said

Trained = tuple[LabelledText, ...]


@dataclass(frozen=True, slots=True)
class Tuned:
    """`student`: distil the tuned encoder into so many layers. `trained`: what was trained so far, by its rows."""

    layout: Layout
    precision: Precision
    cache: Path
    student: int | None
    general: int
    trained: dict[Trained, Remembered] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "student" if self.student else "tuned"

    def judge(self, fitted: Rows, calibration: Rows, judged: Rows, coverage: float) -> list[Said]:
        made = unclaimed_prompts(fitted, self.general) if self.general else []
        found = fit_tuned(fitted, self.train, coverage=coverage, calibration=calibration, general=made).classifier
        encoder = next(one for one in self.trained.values() if one.ref == found.encoder)
        return say(found, judged, encoder)

    def train(self, rows: Sequence[LabelledText]) -> Remembered:
        """An encoder trained on `rows`; folds that fit on the same rows share it."""
        if tuple(rows) not in self.trained:
            layout = tune_encoder(self.layout, rows, self.cache, tuning_for(len(rows)), _say)
            if self.student:
                texts = [row.text for row in rows]
                layout = distil_encoder(layout, texts, self.student, self.cache, tuning_for(len(rows)), _say)
            self.trained[tuple(rows)] = Remembered(open_layout(layout, self.precision, self.cache))
        return self.trained[tuple(rows)]


def tuned_arm(arguments: argparse.Namespace) -> Tuned:
    """The arm that `--encoder`, `--student` and the others name."""
    cache = cache_of(arguments)
    return Tuned(read_layout(arguments.encoder), arguments.precision, cache, arguments.student, arguments.general)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
