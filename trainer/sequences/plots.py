"""A sequence as pictures: each function draws one figure and returns it as SVG text. Colours stay apart for
colour-blind eyes: cividis for values, Okabe and Ito's for arms.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..plots import BASE, FAINT, INK, SOFT, STYLE, svg

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a6d3b", "#7c3aed")
MARKERS = "osD^vP*X"
_POINTS = 120


@dataclass(frozen=True, slots=True)
class Spread:
    """A mean with its interval over seeds, if there is one."""

    mean: float
    lower: float | None = None
    upper: float | None = None

    @classmethod
    def read(cls, found: Mapping[str, Any]) -> Spread:
        return cls(found["mean"], found["lower"], found["upper"])

    def within(self, low: float, high: float) -> tuple[float, float]:
        """Lengths of the two halves of the error bar, cut to what can be drawn."""
        below, above = (self.mean if end is None else min(high, max(low, end)) for end in (self.lower, self.upper))
        return max(0.0, self.mean - below), max(0.0, above - self.mean)


@dataclass(frozen=True, slots=True)
class Mark:
    """One arm on a frontier."""

    label: str
    family: str
    across: Spread
    up: Spread


def heat_map(rows: Sequence[Sequence[float] | None], tasks: Sequence[str], *, nll: bool) -> str:
    """R, the base on top. Exact match in per cent, bright is high; NLL in nats per token, bright is low."""
    with rc_context(STYLE):
        figure = Figure(figsize=(1.15 + 0.62 * len(tasks), 1.05 + 0.36 * len(rows)), layout="constrained")
        axes = figure.subplots()
        known = [value for row in rows if row is not None for value in row]
        top = max(known, default=1.0) if nll else 1.0
        colours = colormaps["cividis_r" if nll else "cividis"]
        for height, row in enumerate(rows):
            for column, value in enumerate(row or ()):
                shade = value / top if top else 0.0
                axes.fill_between([column, column + 0.96], height, height + 0.94, color=colours(shade), lw=0)
                dark = (shade > 0.5) if nll else (shade < 0.5)
                text = f"{value:.2f}" if nll else f"{100 * value:.0f}"
                axes.text(
                    column + 0.48,
                    height + 0.49,
                    text,
                    ha="center",
                    va="center",
                    color="#ffffff" if dark else "#111111",
                    fontsize=10,
                )
        axes.set(xlim=(0, len(tasks)), ylim=(len(rows), 0))
        axes.set_xticks([column + 0.48 for column in range(len(tasks))], tasks, rotation=28, ha="right")
        axes.set_yticks(
            [height + 0.47 for height in range(len(rows))],
            ["base", *(f"after {number}" for number in range(1, len(rows)))],
        )
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return svg(figure)


def frontier(marks: Sequence[Mark], across: str, up: str, lines: Mapping[str, float]) -> str:
    """Arms as points with their intervals, a family's joined by a line; `lines` are named heights."""
    colours = family_colours(marks)
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.3))
        axes = figure.add_axes((0.14, 0.13, 0.575, 0.83))
        for family in colours:
            mine = sorted((mark for mark in marks if mark.family == family), key=lambda mark: mark.across.mean)
            colour, shape = colours[family]
            axes.plot([m.across.mean for m in mine], [m.up.mean for m in mine], color=colour, lw=1.2, alpha=0.6)
            for mark in mine:
                left, right = mark.across.within(0, 1)
                below, above = mark.up.within(0, 1.1)
                axes.errorbar(
                    mark.across.mean,
                    mark.up.mean,
                    xerr=[[left], [right]],
                    yerr=[[below], [above]],
                    fmt=shape,
                    ms=7,
                    color=colour,
                    elinewidth=1,
                    alpha=0.95,
                )
        for height in lines.values():
            axes.axhline(height, color=BASE, lw=1, ls="--")
        ends = [(mark.label, mark.across.mean, mark.up.mean, colours[mark.family][0]) for mark in marks]
        _frame(axes, marks, lines)
        ends += [(name, axes.get_xlim()[1], height, SOFT) for name, height in lines.items()]
        _label_on_the_right(axes, ends)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.set(xlabel=across, ylabel=up)
        axes.grid(color=FAINT, lw=0.6)
        return svg(figure)


def progress(curves: Mapping[str, Sequence[float]], families: Mapping[str, str], label: str) -> str:
    """Per arm the mean over the tasks learned so far, after every stage."""
    marks = [Mark(name, families[name], Spread(0), Spread(0)) for name in curves]
    colours = family_colours(marks)
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.3))
        axes = figure.add_axes((0.14, 0.13, 0.575, 0.83))
        for name, values in curves.items():
            colour, shape = colours[families[name]]
            axes.plot(range(1, len(values) + 1), values, marker=shape, ms=5, color=colour, lw=1.4)
        stages = max(len(values) for values in curves.values())
        axes.set(
            xlim=(0.85, stages + 0.15), ylim=(-0.02, 1.04), xlabel="stage (one task learned in each)", ylabel=label
        )
        axes.set_xticks(range(1, stages + 1))
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
        axes.grid(color=FAINT, lw=0.6)
        ends = [(name, len(values), values[-1], colours[families[name]][0]) for name, values in curves.items()]
        _label_on_the_right(axes, ends)
        return svg(figure)


def loss_line(stages: Sequence[Sequence[float]]) -> str:
    """Training loss over all stages of an arm, stages parted by lines; nats per supervised token."""
    with rc_context(STYLE):
        figure = Figure(figsize=(4.2, 1.35), layout="constrained")
        axes = figure.subplots()
        start = 0
        for number, losses in enumerate(stages):
            size = max(1, math.ceil(len(losses) * len(stages) / _POINTS))
            bins = [losses[at : at + size] for at in range(0, len(losses), size)]
            axes.plot(
                [start + size * (at + 0.5) for at in range(len(bins))], [fmean(one) for one in bins], color=PALETTE[0]
            )
            start += len(losses)
            if number < len(stages) - 1:
                axes.axvline(start, color=FAINT, lw=1)
        axes.set(ylim=(0, None), xlim=(0, max(start, 1)), xlabel="step", ylabel="loss")
        return svg(figure)


def omega_and_divergence(points: Sequence[tuple[str, str, float, float]]) -> str:
    """(arm, family, Ω, measured KL) of every stage: on the dashed line the penalty tells the truth."""
    marks = [Mark(arm, family, Spread(0), Spread(0)) for arm, family, _, _ in points]
    colours = family_colours(marks)
    with rc_context(STYLE):
        figure = Figure(figsize=(6.4, 4.3))
        axes = figure.add_axes((0.14, 0.13, 0.575, 0.83))
        values = [value for _, _, omega, kl in points for value in (omega, kl)]
        ends = [min(values) / 2, max(values) * 2]
        axes.plot(ends, ends, color=BASE, lw=1, ls="--")
        for _, family, omega, kl in points:
            axes.plot([kl], [omega], colours[family][1], color=colours[family][0], ms=6, alpha=0.8)
        axes.set(xscale="log", yscale="log", xlim=ends, ylim=ends)
        axes.set(xlabel="measured KL on anchors, nats per token", ylabel="Ω, nats per token")
        axes.grid(color=FAINT, lw=0.6)
        last = {arm: (arm, kl, omega, colours[family][0]) for arm, family, omega, kl in points}
        _label_on_the_right(axes, list(last.values()))
        return svg(figure)


def family_colours(marks: Sequence[Mark]) -> dict[str, tuple[str, str]]:
    """Colour and marker of every family, in order of appearance."""
    families = list(dict.fromkeys(mark.family for mark in marks))
    return {
        family: (PALETTE[number % len(PALETTE)], MARKERS[(number // len(PALETTE) + number) % len(MARKERS)])
        for number, family in enumerate(families)
    }


def _frame(axes: Axes, marks: Sequence[Mark], lines: Mapping[str, float]) -> None:
    """Room around points, not around error bars: a bar over the whole axis says enough by being cut."""
    wide = [mark.across.mean for mark in marks]
    tall = [*(mark.up.mean for mark in marks), *lines.values()]
    for values, place in ((wide, axes.set_xlim), (tall, axes.set_ylim)):
        margin = max(0.06, 0.08 * (max(values) - min(values)) + 0.02)
        place(max(-0.03, min(values) - margin), max(values) + margin)


def _label_on_the_right(axes: Axes, ends: Sequence[tuple[str, float, float, str]]) -> None:
    """Names in a column beside the axes, in the order of their heights, each led to its point: nothing overlaps."""
    to_axes = axes.transData + axes.transAxes.inverted()
    placed = sorted(
        ((float(to_axes.transform((x, y))[1]), name, x, y, colour) for name, x, y, colour in ends),
        key=lambda one: (one[0], one[1]),
    )
    heights = spread_out([height for height, *_ in placed], 0.052)
    for height, (_, name, x, y, colour) in zip(heights, placed, strict=True):
        axes.annotate(
            name,
            (x, y),
            (1.05, height),
            textcoords="axes fraction",
            color=INK,
            fontsize=9.5,
            va="center",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.7, "alpha": 0.55, "shrinkB": 3},
            annotation_clip=False,
        )


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Rising `heights` moved as little as needed to lie at least `gap` apart, in 0 … 1 as far as there is room."""
    groups: list[list[float]] = []  # of wanted heights; a group is laid out around its mean, `gap` apart
    for height in heights:
        groups.append([min(1.0, max(0.0, height))])
        while len(groups) > 1 and _low(groups[-1], gap) - _high(groups[-2], gap) < gap:
            last = groups.pop()
            groups[-1] += last
    return [_low(group, gap) + number * gap for group in groups for number in range(len(group))]


def _low(group: Sequence[float], gap: float) -> float:
    low = fmean(group) - gap * (len(group) - 1) / 2
    return max(0.0, min(low, 1.0 - gap * (len(group) - 1)))


def _high(group: Sequence[float], gap: float) -> float:
    return _low(group, gap) + gap * (len(group) - 1)
