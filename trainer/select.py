"""Which checkpoint is kept: the best target among those that keep every guardrail. Pure numbers; SCIENCE.md §7."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from adapters.evidence import Evaluation, Item, Score
from adapters.gate import guardrail_problem
from adapters.policy import GuardrailMode


@dataclass(frozen=True, slots=True)
class Candidate:
    """A checkpoint as the selection items saw it."""

    step: int
    target: Evaluation
    guardrails: tuple[Evaluation, ...] = ()

    @property
    def rank(self) -> tuple[float, float, int]:
        """Larger is better: mean score, then lower mean NLL, then the earlier step."""
        scores = [item.adapter for item in self.target.items]
        return fmean(score.score for score in scores), -fmean(score.nll for score in scores), -self.step


@dataclass(frozen=True, slots=True)
class Choice:
    """The checkpoint to keep; `guardrail_failed` where none kept every guardrail."""

    step: int
    guardrail_failed: bool


def choose(candidates: Sequence[Candidate], bound: float) -> Choice:
    """The best target among the candidates that keep every guardrail, or among all where none does."""
    kept = [one for one in candidates if all(keeps(guardrail, bound) for guardrail in one.guardrails)]
    best = max(kept or candidates, key=lambda one: one.rank)
    return Choice(best.step, guardrail_failed=not kept)


def is_exhausted(candidates: Sequence[Candidate], bound: float, patience: int) -> bool:
    """Whether the last `patience` candidates, in the order of their steps, brought nothing better (early stopping)."""
    best = choose(candidates, bound).step
    return sum(one.step > best for one in candidates) >= patience


def keeps(guardrail: Evaluation, bound: float) -> bool:
    """Whether `guardrail` holds by the promotion gate's own rule, on its decisive arm."""
    return guardrail_problem(guardrail, decisive_arm(guardrail), bound) is None


def decisive_arm(guardrail: Evaluation) -> GuardrailMode:
    """Routed where every item carries a decision: what would really answer; else the adapter forced on."""
    return "routed" if guardrail.is_routed else "forced"


def nll_rises(items: Sequence[Item], arm: GuardrailMode) -> list[float]:
    """Per item: NLL of what answers − NLL of the base, nats per target token."""
    return [answering(item, arm).nll - item.base.nll for item in items]


def score_gains(items: Sequence[Item], arm: GuardrailMode) -> list[float]:
    """Per item: score of what answers − score of the base."""
    return [answering(item, arm).score - item.base.score for item in items]


def answering(item: Item, arm: GuardrailMode) -> Score:
    """The score of what would answer: always the adapter, or what the classifier chose."""
    return item.routed if arm == "routed" else item.adapter
