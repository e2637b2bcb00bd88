"""How much of an adapter its guardrails allow: WiSE-FT scales on the selection items (SCIENCE.md §7).

The largest scale that keeps every guardrail is taken. Only rows for choosing are read, as `train` would choose with:
the half of each file, or --select; the evidence on the scaled adapter comes from the other half.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from adapters.base import Base
from adapters.evidence import Evaluation
from adapters.statistics import upper_bound

from ..comparison import Comparison
from ..data import Dataset, halves, refuse_shared
from ..evaluate import Evaluator
from ..model import LoadedBase, load_adapter, load_base
from ..observer import Observer, watch_scoring
from ..select import decisive_arm, keeps, nll_rises
from ..task import Judges, find_max_length, read_judging, require_decisions
from .config import MergeSettings
from .wise_ft import rescaled

SCALES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True, slots=True)
class ScalePoint:
    """W₀ + scale·ΔW as the selection items saw it."""

    scale: float
    target: Evaluation
    guardrails: tuple[Evaluation, ...]

    def keeps_all(self, bound: float) -> bool:
        return all(keeps(one, bound) for one in self.guardrails)


@dataclass(frozen=True, slots=True)
class Sweep:
    """Every scale that was tried. `chosen` is the largest that keeps every guardrail, `None` where none does."""

    points: Sequence[ScalePoint]
    bound: float

    @property
    def chosen(self) -> float | None:
        return max((one.scale for one in self.points if one.keeps_all(self.bound)), default=None)

    def summary(self) -> Mapping[str, object]:
        """What the record holds: per scale the target, and each guardrail's bound in nats per token."""
        target = self.points[0].target
        return {
            "rule": "largest scale that keeps every guardrail",
            "guardrail_bound": self.bound,
            "file_digest": target.file_digest,
            "part": target.part,
            "items": len(target.items),
            "chosen": self.chosen,
            "scales": [_point(one, self.bound) for one in self.points],
        }


def sweep_scales(
    settings: MergeSettings, route: str, folder: Path, base: Base, cache: Path, observer: Observer
) -> Sweep:
    """Score the adapter in `folder` at every one of `SCALES`; the base's scores are kept in the folder `cache`.

    `route` is the name that decisions call the adapter by. Raises what reading rows and loading raise.
    """
    observer.say(f"loading base {base.id}")
    loaded = load_base(base)
    judges = read_selecting(settings, loaded)
    decisions = require_decisions(settings.decisions, judges)
    model = load_adapter(loaded, folder)
    evaluator = Evaluator(
        model, loaded.tokenizer, loaded.end_tokens, loaded.pad_token, settings.metric, settings.max_new_tokens
    )
    comparison = Comparison(evaluator, base.fingerprint, route, decisions, cache, watch_scoring(observer))
    points = []
    for scale in SCALES:
        with rescaled(model, scale):
            guardrails = tuple(comparison.compare(one).evaluation for one in judges.guardrails)
            points.append(ScalePoint(scale, comparison.compare(judges.target).evaluation, guardrails))
        kept = "keeps every guardrail" if points[-1].keeps_all(settings.guardrail_bound) else "breaks a guardrail"
        observer.say(f"scale {scale:g}: {settings.metric} {_score(points[-1].target):.3f}, {kept}")
    return Sweep(tuple(points), settings.guardrail_bound)


def read_selecting(settings: MergeSettings, loaded: LoadedBase) -> Judges:
    """The rows that choose, exactly those `train` chooses a checkpoint with."""
    max_length = find_max_length(settings.max_length, loaded)

    def read(path: Path, name: str) -> Dataset:
        return read_judging(path, name, loaded, max_length)

    target = read(settings.select, "select") if settings.select else None
    if settings.eval:
        judged = read(settings.eval, "eval")
        if target is not None:
            refuse_shared(target, judged)
        target = target or halves(judged)[0]
    assert target is not None  # noqa: S101 - the settings were refused otherwise
    return Judges(target, tuple(halves(read(file, file.stem))[0] for file in settings.guardrails))


def _point(point: ScalePoint, bound: float) -> dict[str, object]:
    return {
        "scale": point.scale,
        "score": _score(point.target),
        "nll": fmean(item.adapter.nll for item in point.target.items),
        "kept": point.keeps_all(bound),
        "guardrails": [
            {"name": one.name, "items": len(one.items), "nll_rise_upper_bound": _rise(one), "kept": keeps(one, bound)}
            for one in point.guardrails
        ],
    }


def _score(evaluation: Evaluation) -> float:
    return fmean(item.adapter.score for item in evaluation.items)


def _rise(guardrail: Evaluation) -> float | None:
    """The bound on the arm that decides; `None` where too few items leave it open."""
    rise = upper_bound(nll_rises(guardrail.items, decisive_arm(guardrail)))
    return rise if math.isfinite(rise) else None
