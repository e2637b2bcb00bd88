"""A fitted classifier: text in, `Scores` out. Frozen, deterministic, thread-safe, no I/O; numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..types import Scores
from .abstain import NOTHING_KNOWN, ScoreName, decision_scores
from .features import Features, Sparse
from .head import Head, Scalars, log_sum_exp

BASE = "base"
MAX_EARLIER_TURNS = 3
TEXT_RULE = f"last user turn; while it abstains, earlier user turns, at most {MAX_EARLIER_TURNS} back"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a text goes where it goes.

    `probabilities`: label → calibrated probability, largest first. `terms`: the terms that weighed most for the
    top route, each with what it added to that route's logit beyond its mean over all labels.
    """

    scores: Scores
    reason: str
    probabilities: Mapping[str, float]
    terms: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Classifier:
    """Features, head and abstention under one digest (the artifact's; of the parameters alone before it is saved).

    `summary` is what the fit reported: JSON values only, no text of any example.
    """

    features: Features
    head: Head
    temperature: float
    score_name: ScoreName
    threshold: float
    summary: Mapping[str, object]
    digest: str
    text_rule: str = TEXT_RULE

    @cached_property
    def base_column(self) -> int | None:
        """The column of the learned base class."""
        return self.head.labels.index(BASE) if BASE in self.head.labels else None

    @cached_property
    def routes(self) -> tuple[str, ...]:
        return tuple(label for label in self.head.labels if label != BASE)

    def scores(self, text: str) -> Scores:
        """The top route of `text`, never `base`: the base class speaks through the score, which it lowers."""
        sparse = self.features.transform(text)
        return self._scores(sparse, self.head.logits(sparse))

    def decide_text(self, turns: Sequence[str]) -> Scores:
        """`text_rule` on user turns, newest first: the first that does not abstain, else the newest one's scores."""
        newest: Scores | None = None
        for turn in turns[: 1 + MAX_EARLIER_TURNS] or [""]:
            scores = self.scores(turn)
            if not scores.abstains:
                return scores
            newest = newest or scores
        return newest or self.scores("")

    def scores_per_route(self, text: str) -> dict[str, float]:
        """Calibrated probability of each label (`base` too where it was learned), largest first."""
        return self._probabilities(self.head.logits(self.features.transform(text)))

    def explain(self, text: str, most: int = 10) -> Explanation:
        """`scores` with the reasons behind them."""
        sparse = self.features.transform(text)
        logits = self.head.logits(sparse)
        scores = self._scores(sparse, logits)
        gains = self._gains(sparse, self.head.labels.index(scores.route))
        terms = sorted(gains.items(), key=lambda item: (-item[1], item[0]))[:most]
        reason = _reason(scores, sparse, self.score_name)
        return Explanation(scores, reason, self._probabilities(logits), tuple(terms))

    def _gains(self, sparse: Sparse, column: int) -> dict[str, float]:
        """What each term added to the logit of `column`, gains only. A word and its equal letters are added up."""
        weights = self.head.weights[sparse.indices]
        mean = weights.mean(axis=1) if len(self.head.labels) > 1 else 0.0
        names = self.features.terms()
        gains: dict[str, float] = {}
        for index, gain in zip(sparse.indices, sparse.values * (weights[:, column] - mean), strict=True):
            gains[names[index]] = gains.get(names[index], 0.0) + float(gain)
        return {term: gain for term, gain in gains.items() if gain > 0}

    def _scores(self, sparse: Sparse, logits: Scalars) -> Scores:
        base = self.base_column
        reachable = logits if base is None else np.delete(logits, base)
        at = int(reachable.argmax())
        confidence = float(np.exp(reachable[at] / self.temperature - log_sum_exp(logits / self.temperature)))
        score = NOTHING_KNOWN
        if len(sparse.indices):
            score = float(decision_scores(self.score_name, logits, self.temperature, base))
        return Scores(self.routes[at], confidence, score, self.threshold)

    def _probabilities(self, logits: Scalars) -> dict[str, float]:
        scaled = logits / self.temperature
        shares = np.exp(scaled - log_sum_exp(scaled))
        return {self.head.labels[at]: float(shares[at]) for at in np.argsort(-shares, kind="stable")}


def _reason(scores: Scores, sparse: Sparse, score_name: ScoreName) -> str:
    if not len(sparse.indices):
        return "no word or letter group of it occurs in any example: the base answers"
    relation = "is under" if scores.abstains else "reaches"
    outcome = "the base answers" if scores.abstains else f"{scores.route} answers"
    return f"{score_name} {scores.score:.4g} of route {scores.route} {relation} {scores.threshold:.4g}: {outcome}"
