"""Evidence as pictures: each function draws one figure and returns it as SVG text."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from adapters.evidence import Evaluation, Metric

from .report import Interval, arms
from .select import Candidate, nll_rises

BASE, ADAPTER, ROUTED, LIMIT, FAINT = "#8a94a6", "#0f766e", "#7c3aed", "#b91c1c", "#e5e7eb"
INK, SOFT, AXIS = "#1f2937", "#4b5563", "#9ca3af"
# Colours that the page decides, light or dark.
_VARIABLES = {INK: "ink", SOFT: "soft", AXIS: "axis", FAINT: "line", ADAPTER: "adapter", ROUTED: "routed", LIMIT: "bad"}
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "branchline",
    "font.family": "sans-serif",
    "font.size": 10.5,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": AXIS,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "legend.frameon": False,
}
_POINTS = 80


def learning_curve(losses: Sequence[float], candidates: Sequence[Candidate], chosen: int) -> tuple[str, str]:
    """Training loss and selection NLL by step; selection score by step, the base's beside it."""
    steps, scores = [one.step for one in candidates], [one.rank[0] for one in candidates]
    base = fmean(item.base.score for item in candidates[0].target.items)
    with rc_context(STYLE):
        figure = Figure(figsize=(4.7, 3.1), layout="constrained")
        axes = figure.subplots()
        size = math.ceil(len(losses) / _POINTS)
        bins = [losses[start : start + size] for start in range(0, len(losses), size)]
        axes.plot([size * (index + 0.5) for index in range(len(bins))], [fmean(one) for one in bins], color=BASE)
        axes.plot([], [], color=BASE, label="training loss")
        axes.plot(steps, [-one.rank[1] for one in candidates], "o-", color=ADAPTER, label="selection items")
        axes.set(xlabel="step", ylabel="nats per token", xlim=(0, None), ylim=(0, None))
        axes.legend()
        left = svg(figure)
        figure = Figure(figsize=(4.7, 3.1), layout="constrained")
        axes = figure.subplots()
        axes.axhline(base, color=BASE, ls="--", label="base")
        axes.plot(steps, scores, "o-", color=ADAPTER, label="adapter")
        axes.plot([chosen], [scores[steps.index(chosen)]], "o", ms=13, mfc="none", mec=ADAPTER, label="chosen")
        axes.set(xlabel="step", ylabel=score_name(candidates[0].target.metric), xlim=(0, None), ylim=(-0.03, 1.05))
        axes.legend(loc="best")
        return left, svg(figure)


def target_scores(target: Evaluation) -> str:
    """Mean score of base and adapter, each with its 90 % interval, on one line each."""
    rows: list[tuple[str, str, list[float]]] = [
        ("base", BASE, [item.base.score for item in target.items]),
        ("adapter", ADAPTER, [item.adapter.score for item in target.items]),
    ]
    if target.is_routed:
        rows.append(("routed", ROUTED, [item.routed.score for item in target.items]))
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.7 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for height, (_, colour, scores) in enumerate(reversed(rows)):
            _whisker(axes, height, Interval.of(scores), colour, "{:.1%}", inside=(0.0, 1.0))
        axes.set(xlim=(-0.02, 1.05), xlabel=f"{score_name(target.metric)} (right is better)")
        axes.set_yticks(range(len(rows)), [name for name, _, _ in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.set_xticks([tenth / 10 for tenth in range(0, 11, 2)], [f"{10 * tenth} %" for tenth in range(0, 11, 2)])
        return svg(figure)


def guardrail_rises(guardrails: Sequence[Evaluation], bound: float) -> str:
    """Rise of NLL on each guardrail, forced and routed, against the bound that must not be passed."""
    rows = [(one, arm) for one in guardrails for arm in arms(one)]
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 0.8 + 0.42 * len(rows)), layout="constrained")
        axes = figure.subplots()
        axes.axvline(0, color=FAINT, lw=1)
        axes.axvline(bound, color=LIMIT, lw=1, ls="--")
        for height, (one, arm) in enumerate(reversed(rows)):
            colour = ADAPTER if arm == "forced" else ROUTED
            _whisker(axes, height, Interval.of(nll_rises(one.items, arm)), colour, "{:+.3f}")
        axes.set_yticks(range(len(rows)), [f"{one.name}, {arm}" for one, arm in reversed(rows)])
        axes.set_ylim(-0.6, len(rows) - 0.4)
        axes.margins(x=0.12)
        axes.set_xlabel(f"rise of NLL over the base, nats per token (left is better; dashed: the bound, {bound:g})")
        return svg(figure)


def score_name(metric: Metric) -> str:
    """What a person reads for a metric: of every score shown more is better."""
    special = {"perplexity": "1 / perplexity", "token_f1": "token F1", "json_equal": "equal JSON"}
    return special.get(metric, metric.replace("_", " "))


def _whisker(
    axes: Axes, height: int, interval: Interval, colour: str, text: str, inside: tuple[float, float] | None = None
) -> None:
    ends = [interval.lower, interval.upper]
    if all(math.isfinite(end) for end in ends):
        low, high = inside or (ends[0], ends[1])
        axes.plot([max(low, ends[0]), min(high, ends[1])], [height, height], color=colour, lw=2.5, alpha=0.45)
    axes.plot([interval.mean], [height], "o", color=colour, ms=7)
    axes.annotate(
        text.format(interval.mean), (interval.mean, height), (0, 7), textcoords="offset points", ha="center", size=9
    )


def svg(figure: Figure) -> str:
    """The figure as inline SVG whose ink follows the page's colour scheme."""
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata={"Date": None}, transparent=True)
    text = written.getvalue()
    for colour, name in _VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    return text[text.index("<svg") :]
