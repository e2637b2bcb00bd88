"""Has the live version become worse? What is compared, when it counts, and when to look again. Pure.

An alert needs an effect *and* significance: the mean score of a set fell by at least a threshold, and the paired test
reaches this look's share of α, which the sets divide among themselves (Bonferroni). Answers of another version and
requests that failed are counted apart and are never held against the version.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from ..metrics import TextMetric
from .sequential_test import Drop, Spending, look_alpha, paired_drop

Severity = Literal["warning", "critical"]
Kind = Literal["target", "guardrail"]
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Plan:
    """How often is looked, how much chance is allowed, and what matters.

    `alpha` is the rate of false alarms over all `looks` and sets. `warning` and `critical` are falls of the mean score
    (0 to 1), `errors` is a share of failed requests.
    """

    looks: int = 24
    alpha: float = 0.05
    spending: Spending = "pocock"
    warning: float = 0.02
    critical: float = 0.05
    errors: float = 0.05


@dataclass(frozen=True, slots=True)
class Expected:
    """The scores of a set's items to compare with, by row digest, the metric they were taken with, and how many tokens
    an answer may take. `key` tells the set from others.
    """

    name: str
    kind: Kind
    key: str
    metric: TextMetric
    scores: Mapping[str, float]
    max_tokens: int = 256


@dataclass(frozen=True, slots=True)
class Measured:
    """What came back for a set: scores of the answers that count by row, and how many came to nothing, by reason."""

    scores: Mapping[str, float]
    others: Mapping[str, int]
    errors: Mapping[str, int]

    @property
    def error_share(self) -> float:
        """Failed requests among all of the set."""
        failed = sum(self.errors.values())
        asked = len(self.scores) + sum(self.others.values()) + failed
        return failed / asked if asked else 0.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One set at one look. `reference` and `live` are mean scores of the same items; `level` is what p is held to."""

    name: str
    kind: Kind
    metric: TextMetric
    reference: float
    live: float
    drop: Drop
    level: float
    severity: Severity | None
    others: Mapping[str, int]
    errors: Mapping[str, int]
    failing: bool

    def __str__(self) -> str:
        drop = self.drop
        return (
            f"{self.kind} {self.name}: {self.metric} {self.reference:.3f} → {self.live:.3f} "
            f"({0 - 100 * drop.size:+.1f} points on {drop.pairs} items, {drop.worse} worse, {drop.better} better, "
            f"p = {drop.p:.2g}, held to {self.level:.2g})"
        )


def judge(expected: Expected, measured: Measured, level: float, plan: Plan) -> Finding:
    """Compare the items that have both scores, at significance `level`."""
    rows = sorted(expected.scores.keys() & measured.scores.keys())
    before = [expected.scores[row] for row in rows]
    now = [measured.scores[row] for row in rows]
    drop = paired_drop(before, now)
    return Finding(
        name=expected.name,
        kind=expected.kind,
        metric=expected.metric,
        reference=fmean(before) if rows else 0.0,
        live=fmean(now) if rows else 0.0,
        drop=drop,
        level=level,
        severity=severity(expected.kind, drop, level, plan),
        others=measured.others,
        errors=measured.errors,
        failing=measured.error_share > plan.errors,
    )


def severity(kind: Kind, drop: Drop, level: float, plan: Plan) -> Severity | None:
    """Critical from `plan.critical` on, and on a guardrail, which must not get worse, already from `plan.warning`."""
    if drop.p > level or drop.size < plan.warning:
        return None
    return "critical" if kind == "guardrail" or drop.size >= plan.critical else "warning"


def worst(findings: Sequence[Finding]) -> Severity | None:
    """The look's own severity. Failing requests are a warning, never a reason to call the version worse."""
    found: Counter[Severity | None] = Counter(finding.severity for finding in findings)
    if found["critical"]:
        return "critical"
    return "warning" if found["warning"] or any(finding.failing for finding in findings) else None


def set_level(plan: Plan, look: int, sets: int) -> float:
    """The significance level of each of `sets` sets at look `look` (from 1)."""
    return look_alpha(plan.spending, plan.alpha, look, plan.looks) / sets


def seconds_until(last: float | None, every: float, now: float) -> float:
    """How long to wait for the next look: `every` seconds from the last one, none where there was none."""
    return 0.0 if last is None else max(0.0, last + every - now)


def parse_interval(text: str) -> float:
    """Seconds of `90s`, `15m`, `1h` or `2d`; raises `ValueError`."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd])", text)
    if match is None or not float(match[1]):
        raise ValueError(f"{text!r} is no interval, expected for example 90s, 15m, 1h or 2d")
    return float(match[1]) * _UNITS[match[2]]
