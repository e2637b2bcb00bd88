"""Findings become evidence, and the few numbers people ask for first."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean

from adapters.base import Base
from adapters.evidence import Evaluation, Evidence
from adapters.manifests import weights_digest
from adapters.policy import GuardrailMode
from adapters.statistics import lower_bound, upper_bound
from adapters.types import Json

from .comparison import Compared
from .decisions import Decisions
from .select import Candidate, Choice, decisive_arm, keeps, nll_rises, score_gains


@dataclass(frozen=True, slots=True)
class Findings:
    """What one version was found to do. The last three are empty where an existing folder was evaluated.

    `losses` is the training loss of every step in nats per supervised token.
    """

    target: Compared
    guardrails: tuple[Compared, ...]
    bound: float
    candidates: tuple[Candidate, ...] = ()
    choice: Choice | None = None
    losses: Sequence[float] = ()

    @property
    def guardrail_failed(self) -> bool:
        """True where no candidate kept every guardrail, or this version breaks one on the evidence's own items."""
        return (self.choice is not None and self.choice.guardrail_failed) or not all(
            keeps(one.evaluation, self.bound) for one in self.guardrails
        )


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean paired difference and its one-sided 95 % bounds on either side (together a 90 % interval)."""

    lower: float
    mean: float
    upper: float

    @classmethod
    def of(cls, differences: Sequence[float]) -> Interval:
        return cls(lower_bound(differences), fmean(differences), upper_bound(differences))


def make_evidence(findings: Findings, folder: Path, base: Base, decisions: Decisions | None, probe: Json) -> Evidence:
    """Evidence on the two files in `folder`, bound to them, to the base and to every evaluation file."""
    return Evidence(
        weights_digest=weights_digest(folder),
        base_fingerprint=base.fingerprint,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        target=findings.target.evaluation,
        guardrails=tuple(one.evaluation for one in findings.guardrails),
        classifier_digest=decisions.classifier_digest if decisions else None,
        guardrail_failed=findings.guardrail_failed,
        selection=_selection(findings),
        probe=probe,
    )


def summarise(findings: Findings) -> dict[str, object]:
    """The numbers of the summary table; a bound that too few items leave open is `None`."""
    return {
        "step": findings.choice.step if findings.choice else None,
        "target": _target(findings.target.evaluation),
        "guardrails": [_guardrail(one.evaluation, findings.bound) for one in findings.guardrails],
        "guardrail_failed": findings.guardrail_failed,
    }


def arms(evaluation: Evaluation) -> tuple[GuardrailMode, ...]:
    """Forced always, routed where decisions are there."""
    return ("forced", "routed") if evaluation.is_routed else ("forced",)


def _target(target: Evaluation) -> dict[str, object]:
    found: dict[str, object] = {
        "metric": target.metric,
        "items": len(target.items),
        "base": fmean(item.base.score for item in target.items),
        "adapter": fmean(item.adapter.score for item in target.items),
        "gain_lower_bound": _finite(lower_bound(score_gains(target.items, "forced"))),
        "base_nll": fmean(item.base.nll for item in target.items),
        "adapter_nll": fmean(item.adapter.nll for item in target.items),
    }
    if target.is_routed:
        found["routed"] = fmean(item.routed.score for item in target.items)
    return found


def _guardrail(guardrail: Evaluation, bound: float) -> dict[str, object]:
    return {
        "name": guardrail.name,
        "items": len(guardrail.items),
        "base": fmean(item.base.score for item in guardrail.items),
        "adapter": fmean(item.adapter.score for item in guardrail.items),
        "nll_rise_upper_bound": {arm: _finite(upper_bound(nll_rises(guardrail.items, arm))) for arm in arms(guardrail)},
        "decisive": decisive_arm(guardrail),
        "kept": keeps(guardrail, bound),
    }


def _selection(findings: Findings) -> Json:
    if not findings.candidates or findings.choice is None:
        return {}
    target = findings.candidates[0].target
    return {
        "rule": "best target score, then lowest target NLL, among checkpoints that keep every guardrail",
        "guardrail_bound": findings.bound,
        "file_digest": target.file_digest,
        "part": target.part,
        "items": len(target.items),
        "chosen_step": findings.choice.step,
        "checkpoints": [_checkpoint(one, findings.bound) for one in findings.candidates],
    }


def _checkpoint(candidate: Candidate, bound: float) -> Json:
    score, negative_nll, _ = candidate.rank
    return {
        "step": candidate.step,
        "score": score,
        "nll": -negative_nll,
        "guardrails": [
            {
                "name": one.name,
                "items": len(one.items),
                "nll_rise_upper_bound": {arm: _finite(upper_bound(nll_rises(one.items, arm))) for arm in arms(one)},
                "kept": keeps(one, bound),
            }
            for one in candidate.guardrails
        ],
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
