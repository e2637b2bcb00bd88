"""A fitted classifier: text in, `Scores` out. Frozen, deterministic, thread-safe, no I/O; numpy only.

Where it was fitted with an encoder, each text comes with the vector that encoder gives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..errors import ClassifierInvalid
from ..types import Scores
from .abstain import NOTHING_KNOWN, ScoreName, decision_scores, routes_of
from .confidence import SPEAKS_FROM, Confidence, known_share
from .encoded import Keys, row_key
from .encoding import EncoderRef
from .features import Features, Floats, Scalars, Sparse
from .head import Head, log_sum_exp
from .pruned_head import PrunedHead

BASE = "base"
MAX_EARLIER_TURNS = 3
NOTHING_TO_GO_BY = "too little of it occurs in any example: the base answers"
TEXT_RULE = f"last user turn; while it abstains, earlier user turns, at most {MAX_EARLIER_TURNS} back"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a text goes where it goes.

    `probabilities`: label → calibrated probability, largest first. `terms`: the terms that weighed most for the
    top route, each with what it added to that route's logit beyond its mean over all labels. `encoder`: what the
    encoder's vector added likewise, `None` without one.
    """

    scores: Scores
    reason: str
    probabilities: Mapping[str, float]
    terms: tuple[tuple[str, float], ...]
    encoder: float | None = None


@dataclass(frozen=True)
class Classifier:
    """Features, head and abstention under one digest (the artifact's; of the parameters alone before it is saved).

    `temperature` belongs to the score, `confidence` to the probabilities. A top route among `own_thresholds` is held
    to its own threshold, any other to `threshold`.
    `summary` is what the fit reported: JSON values only, no text of any example. `rows` are the keys of the rows it
    was fitted on. `encoder` says whose vectors the methods need; without it they take none, and where a vector is
    missing or has another length they raise `ClassifierInvalid`.
    """

    features: Features
    head: Head | PrunedHead
    temperature: float
    confidence: Confidence
    score_name: ScoreName
    threshold: float
    own_thresholds: Mapping[str, float]
    summary: Mapping[str, object]
    rows: Keys
    digest: str
    encoder: EncoderRef | None = None
    text_rule: str = TEXT_RULE

    @cached_property
    def base_column(self) -> int | None:
        """The column of the learned base class."""
        return self.head.labels.index(BASE) if BASE in self.head.labels else None

    @cached_property
    def routes(self) -> tuple[str, ...]:
        return tuple(label for label in self.head.labels if label != BASE)

    def has_row(self, label: str, text: str) -> bool:
        """Whether the fit has seen `text`, or one of its `reading`, as an example of `label` (a route or `base`)."""
        key = np.uint64(row_key(label, text))
        at = int(np.searchsorted(self.rows, key))
        return at < len(self.rows) and bool(self.rows[at] == key)

    def scores(self, text: str, vector: Floats | None = None) -> Scores:
        """The top route of `text`, never `base`: the base class speaks through the score, which it lowers.

        `vector` (dimension,) is the encoder's, where there is one.
        """
        sparse = self.features.transform(text)
        known = known_share(sparse)
        return self._scores(self._logits(sparse, vector), known, silent=self._silent(sparse, known, text))

    def scores_of(self, logits: Scalars, known: float) -> Scores:
        """What is made of `logits` (labels,) of a text of which the share `known` is known (`confidence`).

        Whoever computed them: the weights of another fit, for one.
        """
        return self._scores(logits, known, silent=self.encoder is None and known < SPEAKS_FROM)

    def decide_text(self, turns: Sequence[str], vectors: Floats | None = None) -> Scores:
        """`text_rule` on user turns, newest first: the first that does not abstain, else the newest one's scores.

        `vectors` (at least as many as the turns within reach, dimension) in the order of `turns`. No turn at all
        abstains without one.
        """
        newest: Scores | None = None
        for at, turn in enumerate(turns[: 1 + MAX_EARLIER_TURNS]):
            scores = self.scores(turn, None if vectors is None else vectors[at])
            if not scores.abstains:
                return scores
            newest = newest or scores
        return newest or self._scores(np.zeros(len(self.head.labels)), 1.0, silent=True)

    def scores_per_route(self, text: str, vector: Floats | None = None) -> dict[str, float]:
        """Calibrated probability of each label (`base` too where it was learned), largest first."""
        sparse = self.features.transform(text)
        return self._probabilities(self._logits(sparse, vector), known_share(sparse))

    def explain(self, text: str, vector: Floats | None = None, most: int = 10) -> Explanation:
        """`scores` with the reasons behind them."""
        sparse = self.features.transform(text)
        logits, known = self._logits(sparse, vector), known_share(sparse)
        silent = self._silent(sparse, known, text)
        scores = self._scores(logits, known, silent=silent)
        column = self.head.labels.index(scores.route)
        gains = self._gains(sparse, column)
        terms = sorted(gains.items(), key=lambda item: (-item[1], item[0]))[:most]
        return Explanation(
            scores,
            NOTHING_TO_GO_BY if silent else _reason(scores, self.score_name),
            self._probabilities(logits, known),
            tuple(terms),
            self._encoder_gain(vector, column),
        )

    def _logits(self, sparse: Sparse, vector: Floats | None) -> Scalars:
        found = None if vector is None else vector.shape
        expected = None if self.encoder is None else (self.encoder.dimension,)
        if found != expected:
            name = "no encoder" if self.encoder is None else f"encoder {self.encoder.name}"
            raise ClassifierInvalid(
                f"a vector of shape {found} came with the text, expected {expected}",
                hint=f"this classifier was fitted with {name}",
            )
        return self.head.logits(sparse, vector)

    def _silent(self, sparse: Sparse, known: float, text: str) -> bool:
        """Whether there is too little in `text` to judge it by: too few known words, or nothing to encode."""
        if self.encoder is None:
            return known < SPEAKS_FROM
        return not len(sparse.indices) and not text.strip()

    def _encoder_gain(self, vector: Floats | None, column: int) -> float | None:
        if vector is None:
            return None
        gains = vector @ self.head.dense
        return float(gains[column] - (gains.mean() if len(gains) > 1 else 0.0))

    def _gains(self, sparse: Sparse, column: int) -> dict[str, float]:
        """What each term added to the logit of `column`, gains only. A word and its equal letters are added up."""
        weights = self.head.weights_of(sparse.indices)
        mean = weights.mean(axis=1) if len(self.head.labels) > 1 else 0.0
        names = self.features.terms()
        gains: dict[str, float] = {}
        for index, gain in zip(sparse.indices, sparse.values * (weights[:, column] - mean), strict=True):
            gains[names[index]] = gains.get(names[index], 0.0) + float(gain)
        return {term: gain for term, gain in gains.items() if gain > 0}

    def _scores(self, logits: Scalars, known: float, *, silent: bool = False) -> Scores:
        base = self.base_column
        at = int(routes_of(logits, base).argmax())
        scaled = self.confidence.scaled(logits, known)
        score = NOTHING_KNOWN if silent else float(decision_scores(self.score_name, logits, self.temperature, base))
        route = self.head.labels[at]
        threshold = self.own_thresholds.get(route, self.threshold)
        return Scores(route, float(np.exp(scaled[at] - log_sum_exp(scaled))), score, threshold)

    def _probabilities(self, logits: Scalars, known: float) -> dict[str, float]:
        scaled = self.confidence.scaled(logits, known)
        shares = np.exp(scaled - log_sum_exp(scaled))
        return {self.head.labels[at]: float(shares[at]) for at in np.argsort(-shares, kind="stable")}


def _reason(scores: Scores, score_name: ScoreName) -> str:
    relation = "is under" if scores.abstains else "reaches"
    outcome = "the base answers" if scores.abstains else f"{scores.route} answers"
    return f"{score_name} {scores.score:.4g} of route {scores.route} {relation} {scores.threshold:.4g}: {outcome}"
