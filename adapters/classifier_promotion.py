"""Promotion of a classifier through the gate: judged against the very classifier that it replaces."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .classifier_evidence import ClassifierEvidence
from .classifier_gate import ClassifierPolicy, judge_classifier
from .classifiers import classifier_evidence, classifier_version, promote_classifier
from .errors import Conflict, GateRefused
from .gate import Verdict
from .journal import Journal
from .store import Store
from .types import ClassifierState, Event

_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class ClassifierPromotion:
    """A promotion that happened, what the gate had found, and the number that was live before."""

    event: Event
    verdict: Verdict
    replaced: int | None


def promote_through_gate(
    journal: Journal,
    store: Store,
    number: int,
    *,
    policy: ClassifierPolicy,
    forced: str | None = None,
    why: str | None = None,
) -> ClassifierPromotion:
    """Promote if the gate passes it, or if `forced` gives a reason, which stays in the history with what was unmet.

    Raises `GateRefused` listing every unmet condition, `NotFound`, and `Refused` where it is live already.
    """
    for _ in range(_ATTEMPTS):
        state = journal.classifier_state()
        verdict = examine_classifier(journal, store, state, number, policy)
        if verdict.unmet and forced is None:
            raise GateRefused(
                f"classifier {number} does not pass the promotion gate: {'; '.join(verdict.unmet)}",
                hint=_way_out(verdict, number),
                unmet=verdict.unmet,
            )
        gate = {"unmet": list(verdict.unmet), "numbers": verdict.numbers, "forced": forced is not None}
        try:
            event = promote_classifier(journal, number, why=forced or why, gate=gate, expected=state)
        except Conflict:
            continue  # another one went live while the evidence was read: judge again
        return ClassifierPromotion(event, verdict, state.live)
    raise Conflict("the live classifier keeps changing", hint="see who else is working on it")


def examine_classifier(
    journal: Journal, store: Store, state: ClassifierState, number: int, policy: ClassifierPolicy
) -> Verdict:
    """What the gate would say of promoting `number` in `state`. Raises `NotFound`."""

    def evidence_of(one: int) -> list[ClassifierEvidence]:
        return classifier_evidence(journal, store, classifier_version(journal, one))

    live = None if state.live in (None, number) else evidence_of(state.live)
    return judge_classifier(evidence_of(number), live, policy)


def _way_out(verdict: Verdict, number: int) -> str:
    numbers, more = verdict.numbers, f"`branchline classifier eval FILE --classifier {number} --evidence`"
    if len(verdict.unmet) > numbers.get("missing", math.inf):
        return f'see where it loses with `branchline classifier diff live {number} FILE`, or promote with --force "why"'
    if numbers and "common_items" not in numbers:  # the live one has no evidence, and perhaps cannot have any
        return f"file evidence with {more}; a live classifier of another build: fit again and promote with --force"
    return f'file evidence with {more}, or promote with --force "why"'
