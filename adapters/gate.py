"""The promotion gate: evidence against policy. Pure; every unmet condition is listed.

Everything is recomputed from item-level results; no "passed" field is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from .evidence import Evaluation, Evidence, Item, Score
from .policy import GuardrailMode, Policy
from .statistics import lower_bound, upper_bound

LARGE_GUARDRAIL = 1_500
MAX_SCORE_DROP = 0.02
MIN_BASE_SCORE = 0.30


@dataclass(frozen=True, slots=True)
class Candidate:
    """The version that asks to be live: the digests its evidence must name, and the evidence there is."""

    weights_digest: str
    base_fingerprint: str
    evidence: Sequence[Evidence]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found; `unmet` is empty where the candidate may go live. `numbers` are for the history."""

    unmet: tuple[str, ...]
    numbers: dict[str, float]

    @property
    def passed(self) -> bool:
        return not self.unmet


def judge(
    candidate: Candidate, live: Sequence[Evidence] | None, policy: Policy, live_classifier: str | None
) -> Verdict:
    """Judge the candidate's newest evidence that is bound to it.

    `live` is the live version's evidence, `None` where no version is live. `live_classifier` is the digest of the
    classifier in force, which routed guardrails must have been decided by.
    """
    bound = [one for one in candidate.evidence if not _binding_problems(one, candidate)]
    if not bound:
        return Verdict(tuple(_unbound(candidate)), {})
    evidence = bound[-1]
    numbers: dict[str, float] = {}
    unmet = _target_problems(evidence.target, policy, numbers)
    if live is not None:
        unmet += _live_problems(evidence.target, live, policy, numbers)
    unmet += _guardrail_problems(evidence, policy, live_classifier, numbers)
    return Verdict(tuple(unmet), numbers)


def guardrail_problem(evaluation: Evaluation, mode: GuardrailMode, max_nll_rise: float) -> str | None:
    """Why a guardrail does not hold, `None` where it does (SCIENCE: checkpoint rule).

    It holds where the one-sided 95 % bound of the paired per-item NLL rise is at most `max_nll_rise` nats per token,
    or, with at least 1,500 items on which the base scores 30 % or more, that of the score drop at most 2 points.
    """
    if mode == "routed" and not evaluation.is_routed:
        return f"guardrail {evaluation.name}: carries no routing decisions"
    rise = upper_bound([_answer(item, mode).nll - item.base.nll for item in evaluation.items])
    if rise <= max_nll_rise:
        return None
    if len(evaluation.items) >= LARGE_GUARDRAIL and fmean(i.base.score for i in evaluation.items) >= MIN_BASE_SCORE:
        drop = upper_bound([item.base.score - _answer(item, mode).score for item in evaluation.items])
        if drop <= MAX_SCORE_DROP:
            return None
    return (
        f"guardrail {evaluation.name} ({mode}, n = {len(evaluation.items)}): NLL rise is at most {rise:.4f} nats per "
        f"token with 95 % confidence, the policy allows {max_nll_rise:g}"
    )


def _answer(item: Item, mode: GuardrailMode) -> Score:
    return item.adapter if mode == "forced" else item.routed


def _binding_problems(evidence: Evidence, candidate: Candidate) -> list[str]:
    problems = []
    if evidence.weights_digest != candidate.weights_digest:
        problems.append(
            f"evidence speaks of weights {evidence.weights_digest[:16]}, "
            f"this version is {candidate.weights_digest[:16]}"
        )
    if evidence.base_fingerprint != candidate.base_fingerprint:
        problems.append(
            f"evidence was taken on base {evidence.base_fingerprint[:16]}, "
            f"this version belongs to {candidate.base_fingerprint[:16]}"
        )
    return problems


def _unbound(candidate: Candidate) -> list[str]:
    if not candidate.evidence:
        return ["the version has no evidence"]
    return [problem for one in candidate.evidence for problem in _binding_problems(one, candidate)]


def _target_problems(target: Evaluation, policy: Policy, numbers: dict[str, float]) -> list[str]:
    problems = []
    if len(target.items) < policy.min_items:
        problems.append(f"target {target.name} has {len(target.items)} items, the policy asks for {policy.min_items}")
    gain = lower_bound([item.adapter.score - item.base.score for item in target.items])
    numbers |= {"items": float(len(target.items)), "gain_bound": gain}
    if not gain > policy.min_gain:
        problems.append(
            f"target {target.name}: the gain over the base is at least {gain:+.4f} with 95 % confidence, "
            f"the policy asks for more than {policy.min_gain:+g}"
        )
    return problems


def _live_problems(
    target: Evaluation, live: Sequence[Evidence], policy: Policy, numbers: dict[str, float]
) -> list[str]:
    other = next(
        (
            one.target
            for one in reversed(live)
            if one.target.file_digest == target.file_digest and _same_rows(one.target, target)
        ),
        None,
    )
    if other is None:
        return [
            f"the live version has no evidence on the same items of {target.name}; evaluate it there and attach that"
        ]
    theirs = {item.row: item.adapter.score for item in other.items}
    bound = lower_bound([item.adapter.score - theirs[item.row] for item in target.items])
    numbers["live_bound"] = bound
    if bound >= -policy.max_loss_to_live:
        return []
    return [
        f"target {target.name}: the difference to the live version is at least {bound:+.4f} with 95 % confidence, "
        f"the policy asks for {-policy.max_loss_to_live:+g} or better"
    ]


def _same_rows(one: Evaluation, other: Evaluation) -> bool:
    return one.metric == other.metric and {item.row for item in one.items} == {item.row for item in other.items}


def _guardrail_problems(
    evidence: Evidence, policy: Policy, live_classifier: str | None, numbers: dict[str, float]
) -> list[str]:
    problems = []
    files = len({one.file_digest for one in evidence.guardrails})
    numbers["guardrails"] = float(files)
    if files < policy.min_guardrails:
        problems.append(f"evidence has {files} guardrails, the policy asks for {policy.min_guardrails}")
    if policy.guardrails == "routed" and (live_classifier is None or evidence.classifier_digest != live_classifier):
        problems.append(
            f"guardrails were routed by classifier {(evidence.classifier_digest or 'none')[:16]}, "
            f"the live one is {(live_classifier or 'none')[:16]}"
        )
    found = (guardrail_problem(one, policy.guardrails, policy.max_nll_rise) for one in evidence.guardrails)
    return problems + [problem for problem in found if problem]
