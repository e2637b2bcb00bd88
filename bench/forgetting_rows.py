"""The forgetting study's figures as rows of a table."""

from collections.abc import Iterator, Mapping
from typing import Any

from .results import Row

MEASURES = (
    ("average", "ACC"),
    ("learned", "learned"),
    ("backward_transfer", "BWT"),
    ("forgetting", "forgetting"),
    ("forward_transfer", "FWT"),
    ("retention", "retention"),
)


def study_rows(chosen: Mapping[str, float], trials: Mapping[str, Any], found: Mapping[str, Any]) -> list[Row]:
    """Everything that the study found: arms, comparisons, the frontier of the trials, and the settings chosen."""
    rows: list[Row] = []
    for name, arm in found["arms"].items():
        rows += arm_rows(name, arm)
    rows += comparison_rows(found)
    for name, arm in trials.items():
        rows += frontier_rows(name, arm)
    return rows + [Row(f"{name}: chosen on the tuning tasks", value, "", "knob") for name, value in chosen.items()]


def arm_rows(name: str, arm: Mapping[str, Any]) -> Iterator[Row]:
    """One arm: exact match and NLL of its own, then routed."""
    mark = ", exploratory" if arm["exploratory"] else ""
    for way, label in (("oracle", ""), ("routed", "routed ")):
        for score, unit, factor in (("exact", "%", 100.0), ("nll", "nats per token", 1.0)):
            measures = arm["summary"][way][score]
            for key, shown in MEASURES:
                if key in measures and (way == "oracle" or key == "average"):
                    own = "" if (key, score) == ("retention", "nll") else unit  # a ratio
                    yield row(f"{name}: {label}{shown}, {score}", measures[key], own, factor, mark)
    if "exact" in arm["summary"]["regret"]:
        yield row(f"{name}: routing regret, exact", arm["summary"]["regret"]["exact"], "%", 100.0, mark)


def comparison_rows(found: Mapping[str, Any]) -> Iterator[Row]:
    """Per-seed paired differences of ACC against the reference arm."""
    for score, unit, factor in (("exact", "%", 100.0), ("nll", "nats per token", 1.0)):
        for name, one in found["comparisons"][score].items():
            p = f", p (Holm) {one['p_holm']:.2g}" if one["p_holm"] is not None else ""
            yield row(f"{name} − {found['reference']}: ACC, {score}", one, unit, factor, p)


def frontier_rows(name: str, arm: Mapping[str, Any]) -> Iterator[Row]:
    """What a trial on the tuning tasks learned and kept."""
    measures = arm["summary"]["oracle"]["nll"]
    for key, shown in (("learned", "learned"), ("average", "ACC"), ("forgetting", "forgetting")):
        if key in measures:
            yield row(f"trial {name}: {shown}, nll", measures[key], "nats per token", 1.0, ", tuning tasks, dev")


def row(what: str, interval: Mapping[str, Any], unit: str, factor: float, mark: str) -> Row:
    """A mean with its 95 % t interval over seeds."""
    between = ""
    if interval["upper"] is not None:
        between = f", 95 % {factor * interval['lower']:.3g} to {factor * interval['upper']:.3g}"
    seeds = f"{interval['seeds']} seed{'s' if interval['seeds'] > 1 else ''}"
    return Row(what, factor * interval["mean"], unit, f"{seeds}{between}{mark}")
