"""What is measured: a way from labelled rows to what is said of other texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from adapters.classifier_evidence import NEGATIVE_LABELS
from adapters.rows import LabelledText
from router.classify.classifier import Classifier
from router.classify.encoding import Encoder, EncoderRef
from router.classify.features import Floats
from router.classify.fit import fit_classifier
from router.classify.general import unclaimed_prompts

from .classifier_data import Rows
from .classifier_measures import Said


class Arm(Protocol):
    """Fitted anew by every call, on `fitted` alone; `calibration` may set temperature, score and threshold."""

    @property
    def name(self) -> str: ...

    def judge(self, fitted: Rows, calibration: Rows, judged: Rows, coverage: float) -> list[Said]:
        """What is said of each of `judged`. `coverage`: the share of in-scope texts to keep."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """An encoder that encodes no text twice while the process runs; nothing goes to disk."""

    encoder: Encoder
    vectors: dict[str, Floats] = field(default_factory=dict)

    @property
    def ref(self) -> EncoderRef:
        return self.encoder.ref

    def encode(self, texts: Sequence[str]) -> Floats:
        new = [text for text in dict.fromkeys(texts) if text not in self.vectors]
        if new:
            self.vectors.update(zip(new, self.encoder.encode(new), strict=True))
        if not texts:
            return np.zeros((0, self.ref.dimension), dtype=np.float32)
        return np.stack([self.vectors[text] for text in texts])


@dataclass(frozen=True, slots=True)
class Ours:
    """Branchline's classifier. `general`: so many made prompts help where the rows to fit on hold no negative."""

    encoder: Remembered | None = None
    general: int = 0

    @property
    def name(self) -> str:
        return "encoder" if self.encoder else "sparse"

    def judge(self, fitted: Rows, calibration: Rows, judged: Rows, coverage: float) -> list[Said]:
        made = unclaimed_prompts(fitted, self.general) if self.general else []
        classifier = fit_classifier(
            fitted, coverage=coverage, calibration=calibration, encoder=self.encoder, general=made
        )
        return say(classifier, judged, self.encoder)


def say(classifier: Classifier, judged: Rows, encoder: Encoder | None) -> list[Said]:
    """What `classifier` says of each row."""
    vectors = encoder.encode([row.text for row in judged]) if encoder else [None] * len(judged)
    return [_said(classifier, row, vector) for row, vector in zip(judged, vectors, strict=True)]


def _said(classifier: Classifier, row: LabelledText, vector: Floats | None) -> Said:
    scores = classifier.scores(row.text, vector)
    own = None
    if row.label not in NEGATIVE_LABELS:
        own = classifier.scores_per_route(row.text, vector).get(row.label, 0.0)
    return Said(row.label, scores.route, scores.confidence, scores.score, scores.threshold, own)
