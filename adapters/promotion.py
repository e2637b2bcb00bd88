"""Promotion through the gate: the evidence is judged against the very state that the promotion replaces."""

from __future__ import annotations

from dataclasses import dataclass

from .classifiers import live_classifier
from .errors import Conflict, GateRefused
from .evidence import Evidence
from .gate import Candidate, Verdict, judge
from .journal import Change
from .policy import Policy
from .registry import Registry
from .store import Store
from .types import RouteState

_ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Promotion:
    """A promotion that happened, and what the gate had found (`forced` ones may have unmet conditions)."""

    change: Change
    verdict: Verdict


def promote(
    registry: Registry,
    store: Store,
    name: str,
    number: int,
    *,
    forced: str | None = None,
    expected_revision: int | None = None,
) -> Promotion:
    """Promote `name@number` if the gate passes it, or if `forced` gives a reason, which stays in the history.

    Raises `GateRefused` listing every unmet condition. The stored bytes are verified first.
    """
    for _ in range(_ATTEMPTS):
        state = registry.route(name)
        version = registry.version(name, number)
        store.verify_version(version)
        verdict = examine(registry, store, state, number)
        if verdict.unmet and forced is None:
            raise GateRefused(
                f"{name}@{number} does not pass the promotion gate: {'; '.join(verdict.unmet)}",
                hint='mend what is unmet, or promote with --force "why"',
                unmet=verdict.unmet,
            )
        judged = state.revision if expected_revision is None else expected_revision
        try:
            gate = {"unmet": list(verdict.unmet), "numbers": verdict.numbers}
            change = registry.promote(name, number, forced=forced, gate=gate, expected_revision=judged)
        except Conflict:
            if expected_revision is not None:
                raise
            continue  # the live version moved while the evidence was read: judge again
        return Promotion(change, verdict)
    raise Conflict(f"route {name!r} keeps changing", hint="see who else is working on it: `branchline route history`")


def examine(registry: Registry, store: Store, state: RouteState, number: int) -> Verdict:
    """What the gate would say of promoting `number` now."""
    version = registry.version(state.name, number)
    candidate = Candidate(
        version.digest, version.manifest.base_fingerprint, evidence_of(registry, store, state, number)
    )
    live = None if state.live is None or state.live == number else evidence_of(registry, store, state, state.live)
    classifier = live_classifier(registry)
    return judge(candidate, live, Policy.of(state.policy), classifier.digest if classifier else None)


def evidence_of(registry: Registry, store: Store, state: RouteState, number: int) -> list[Evidence]:
    """A version's evidence, oldest first, each verified against its digest."""
    return [store.evidence(state.name, digest) for digest in registry.evidence_digests(state.name, number)]
