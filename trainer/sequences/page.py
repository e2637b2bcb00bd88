"""What a sequence found as one self-contained HTML page: no script, no network, pictures inline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from ..page import load_template
from .forgetting import Matrix
from .plots import Mark, Spread, frontier, heat_map, loss_line, omega_and_divergence, progress

_COLUMNS = (
    ("average", "ACC", "mean over all tasks after the last stage"),
    ("learned", "learned", "mean over the tasks, each right after its own stage"),
    ("backward_transfer", "BWT", "what later stages did to earlier tasks: last stage − own stage, mean"),
    ("forgetting", "forgetting", "best score before the last stage − last stage, mean over earlier tasks"),
    (
        "forward_transfer",
        "FWT",
        "what earlier stages did for a task not yet learned: just before its stage − base, mean",
    ),
    ("retention", "retention", "share of the earlier tasks' scores, each after its own stage, that is left at the end"),
)
_ROUTING = (
    ("routed ACC", "ACC where the classifier's decisions choose the adapter, the base included"),
    ("regret", "ACC with the right adapter − routed ACC: what routing costs"),
)
_FEWER_IS_BETTER = ("forgetting", "regret")


def render_sequence(title: str, found: Mapping[str, Any]) -> str:
    """The page of a sequence's report as HTML text."""
    template = load_template(__package__, "sequence.html", percent=percent, nats=nats)
    done = finished_arms(found)
    return template.render(
        title=title,
        found=found,
        done=done,
        columns=[(label, meaning) for _, label, meaning in _COLUMNS],
        routing=_ROUTING,
        fewer=_FEWER_IS_BETTER,
        tables=[table(found, score) for score in ("exact", "nll")],
        frontiers=frontiers(done),
        progress=progress_of_arms(done, len(found["tasks"])),
        cards=[_card(name, arm, found["tasks"]) for name, arm in found["arms"].items() if arm["mode"] != "base"],
        omega=omega(done),
        failures=[
            (name, seed, one["failed"])
            for name, arm in found["arms"].items()
            for seed, one in arm["seeds"].items()
            if one["failed"]
        ],
        comparisons=found["comparisons"]["exact"],
        kl_rows=[(name, kl) for name, arm in done.items() if (kl := last_divergence(arm)) is not None],
    )


def finished_arms(found: Mapping[str, Any]) -> dict[str, Any]:
    """The arms of a report with at least one finished seed."""
    return {name: arm for name, arm in found["arms"].items() if arm["finished"]}


def table(found: Mapping[str, Any], score: str) -> dict[str, Any]:
    """Every arm's measures, oracle-routed, then the routed ACC and what routing costs."""
    rows = []
    for name, arm in found["arms"].items():
        summary = arm["summary"]
        measures = [summary["oracle"][score].get(key) for key, *_ in _COLUMNS]
        routed = [summary["routed"][score].get("average"), summary["regret"].get(score)]
        rows.append({"name": name, "arm": arm, "measures": measures, "routed": routed})
    return {"score": score, "rows": rows}


def mean_matrix(arm: Mapping[str, Any], score: str) -> Matrix:
    """R, oracle-routed, the mean over the seeds that are finished, or else over what is there."""
    seeds = list(arm["seeds"].values())
    chosen = [one for one in seeds if one["finished"]] or seeds
    matrices = [one["R"]["oracle"][score] for one in chosen]
    rows = [[matrix[height] for matrix in matrices if matrix[height] is not None] for height in range(len(matrices[0]))]
    return [[fmean(column) for column in zip(*same, strict=True)] if same else None for same in rows]


def last_divergence(arm: Mapping[str, Any]) -> float | None:
    """Measured KL of the last stage from the one before, over earlier tasks' anchors and seeds, nats per token."""
    values = [
        value
        for one in arm["seeds"].values()
        if one["finished"] and one["stages"]
        for value in (one["stages"][-1]["anchor_kl"] or {}).values()
    ]
    return fmean(values) if values else None


def percent(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    half = f" ± {100 * (found['upper'] - found['mean']):.1f}" if found["upper"] is not None else ""
    return f"{100 * found['mean']:.1f}{half}"


def nats(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "–"
    half = f" ± {found['upper'] - found['mean']:.3f}" if found["upper"] is not None else ""
    return f"{found['mean']:.3f}{half}"


def frontiers(done: Mapping[str, Any]) -> list[str]:
    """Learned against retention, and against ACC, of the finished arms, exact match."""
    learned = {name: arm["summary"]["oracle"]["exact"] for name, arm in done.items() if arm["mode"] != "base"}
    pictures = []
    for key, label in (("retention", "retention"), ("average", "ACC after the last task")):
        marks = [
            Mark(name, done[name]["family"], Spread.read(one["learned"]), Spread.read(one[key]))
            for name, one in learned.items()
            if "learned" in one and key in one
        ]
        lines = {
            name: done[name]["summary"]["oracle"]["exact"]["average"]["mean"]
            for name in done
            if key == "average" and done[name]["mode"] in ("base", "joint")
        }
        if marks:
            pictures.append(frontier(marks, "learned: each task right after its stage", label, lines))
    return pictures


def progress_of_arms(done: Mapping[str, Any], tasks: int) -> str | None:
    """The mean over the tasks so far after each stage, exact match; `None` where there is nothing to draw."""
    curves: dict[str, Sequence[float]] = {}
    if tasks == 1:
        return None  # no way to show: one point an arm
    for name, arm in done.items():
        rows = mean_matrix(arm, "exact")[1:]
        if arm["mode"] != "base" and all(row is not None for row in rows):
            curves[name] = [fmean((rows[stage] or ())[: stage + 1]) for stage in range(tasks)]
    return progress(curves, {name: done[name]["family"] for name in curves}, "mean of tasks so far") if curves else None


def _card(name: str, arm: Mapping[str, Any], tasks: Sequence[str]) -> dict[str, Any]:
    first = next((one for one in arm["seeds"].values() if one["stages"]), None)
    losses = [stage["losses"] for stage in first["stages"]] if first else []
    return {
        "name": name,
        "arm": arm,
        "exact": heat_map(mean_matrix(arm, "exact"), tasks, nll=False),
        "nll": heat_map(mean_matrix(arm, "nll"), tasks, nll=True),
        "loss": loss_line(losses) if losses else None,
    }


def omega(done: Mapping[str, Any]) -> str | None:
    """What the penalties expected to be lost against what the old answers lost; `None` where no arm has both."""
    points = [
        (name, arm["family"], float(one["omega"]), float(one["measured_kl"]))
        for name, arm in done.items()
        for seed in arm["seeds"].values()
        for stage in seed["stages"]
        for one in stage["methods"].values()
        if (one.get("omega") or 0) > 0 and (one.get("measured_kl") or 0) > 0
    ]
    return omega_and_divergence(points) if points else None
