"""What a sequence found, from the rows of R on disk: measures, intervals over seeds, comparisons. No torch here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from ..folder import read_json
from .config import ArmPlan, SequenceConfig
from .folder import SequenceFolder
from .forgetting import Direction, Matrix, measure, routing_regret
from .seeds import SeedInterval, holm, t_interval

Score = Literal["exact", "nll"]
DIRECTIONS: Mapping[Score, Direction] = {"exact": "higher", "nll": "lower"}
WAYS = ("oracle", "routed")


def summarise_sequence(config: SequenceConfig, folder: SequenceFolder) -> dict[str, object]:
    """Everything that is known so far: per arm and seed R and its measures, per arm their means with intervals."""
    base = read_json(folder.base)
    arms = {arm.name: _arm(config, arm, folder, base) for arm in config.arms}
    return {
        "tasks": [task.name for task in config.tasks],
        "split": config.split,
        "seeds": list(config.seeds),
        "reference": config.compared_with,
        "arms": arms,
        "comparisons": compare(arms, config.compared_with),
    }


def compare(arms: Mapping[str, Mapping[str, Any]], reference: str) -> dict[str, object]:
    """Each arm against the reference: per-seed paired differences of the oracle-routed ACC, both ways of scoring, with
    p values adjusted for all arms (Holm).
    """
    return {score: _compare(arms, reference, score) for score in DIRECTIONS}


def report_table(found: Mapping[str, Any]) -> tuple[Sequence[str], list[Sequence[object]]]:
    """Header and rows for a terminal: exact match, oracle-routed and routed."""
    header = ("arm", "seeds", "ACC", "BWT", "forgetting", "FWT", "retention", "NLL", "routed ACC", "regret")
    rows: list[Sequence[object]] = []
    for name, arm in found["arms"].items():
        exact, nll = arm["summary"]["oracle"]["exact"], arm["summary"]["oracle"]["nll"]
        keys = ("average", "backward_transfer", "forgetting", "forward_transfer", "retention")
        routed = arm["summary"]["routed"]["exact"]
        shown = [_percent(exact.get(key)) for key in keys]
        regret = arm["summary"]["regret"].get("exact")
        rows.append(
            (
                name,
                arm["finished"],
                *shown,
                _number(nll.get("average")),
                _percent(routed.get("average")),
                _percent(regret),
            )
        )
    return header, rows


def summarise_arm(about: Mapping[str, object], seeds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What an arm's seeds found: `about` it, each seed, and the means of the finished ones with intervals."""
    finished = [one for one in seeds.values() if one["finished"]]
    summary: dict[str, Any] = {
        way: {
            score: _means([one["measures"][way][score] for one in finished if one["measures"][way]])
            for score in DIRECTIONS
        }
        for way in WAYS
    }
    summary["regret"] = _means([one["regret"] for one in finished if one["regret"]])
    return {**about, "finished": len(finished), "seeds": seeds, "summary": summary}


def _arm(
    config: SequenceConfig, arm: ArmPlan, folder: SequenceFolder, base: Mapping[str, Any] | None
) -> dict[str, Any]:
    about = {
        "mode": arm.mode,
        "family": arm.family or arm.name,
        "exploratory": arm.exploratory,
        "methods": [one.model_dump(mode="json") for one in arm.methods],
        "settings": dict(arm.settings),
    }
    return summarise_arm(about, {str(seed): _seed(config, arm, seed, folder, base) for seed in config.seeds_of(arm)})


def _seed(
    config: SequenceConfig, arm: ArmPlan, seed: int, folder: SequenceFolder, base: Mapping[str, Any] | None
) -> dict[str, Any]:
    """One seed of an arm: R as far as it goes, and the measures once the last stage is there."""
    count = len(config.tasks)
    rows = [
        base,
        *(base if arm.mode == "base" else read_json(folder.row(arm.name, seed, i + 1)) for i in range(count)),
    ]
    failure = read_json(folder.failure(arm.name, seed))
    joint = arm.mode == "joint"
    finished = base is not None and rows[-1] is not None and (joint or all(row is not None for row in rows))
    matrices = {way: {score: _matrix(rows, way, score) for score in DIRECTIONS} for way in WAYS}
    stages = [row for row in rows[1:] if row is not None and "training" in row]
    measures: dict[str, Any] = dict.fromkeys(WAYS)
    regret: dict[str, float] | None = None
    if finished:
        for way in WAYS:
            if rows[-1] is not None and rows[-1][way] is not None:
                measures[way] = {
                    score: dict(measure(matrices[way][score], direction).values)
                    for score, direction in DIRECTIONS.items()
                }
        if measures["routed"]:
            regret = {
                score: routing_regret(matrices["oracle"][score], matrices["routed"][score], direction)
                for score, direction in DIRECTIONS.items()
            }
    return {
        "finished": finished,
        "failed": failure["error"] if failure else None,
        "R": matrices,
        "measures": measures,
        "regret": regret,
        "stages": [_stage(row) for row in stages],
    }


def _matrix(rows: Sequence[Mapping[str, Any] | None], way: str, score: str) -> Matrix:
    return [row[way][score] if row is not None and row[way] is not None else None for row in rows]


def _stage(row: Mapping[str, Any]) -> dict[str, object]:
    training = row["training"]
    kept = ("steps", "tokens", "training_seconds", "method_seconds", "methods", "losses", "weights_digest")
    return {
        "task": row["task"],
        "anchor_kl": row["anchor_kl"],
        "guardrail_rise": row["guardrail_rise"],
        "guardrail_rise_routed": row.get("guardrail_rise_routed"),
        **{key: training[key] for key in kept},
    }


def _means(seeds: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, object]]:
    """Mean and interval over seeds of every measure that all of them have."""
    names = seeds[0] if seeds else ()
    columns = {name: [one[name] for one in seeds] for name in names}
    return {name: _interval(t_interval(_all(values))) for name, values in columns.items() if None not in values}


def _all(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _interval(found: SeedInterval) -> dict[str, object]:
    return {"mean": found.mean, "lower": found.lower, "upper": found.upper, "seeds": found.seeds}


def _compare(arms: Mapping[str, Mapping[str, Any]], reference: str, score: str) -> dict[str, object]:
    averages = {name: _averages(arm, score) for name, arm in arms.items()}
    against = averages[reference]
    found: dict[str, SeedInterval] = {}
    for name, mine in averages.items():
        shared = sorted(mine.keys() & against.keys())
        if name != reference and shared:
            found[name] = t_interval([mine[seed] - against[seed] for seed in shared])
    adjusted = holm({name: one.p for name, one in found.items() if one.p is not None})
    return {name: {**_interval(one), "p": one.p, "p_holm": adjusted.get(name)} for name, one in found.items()}


def _averages(arm: Mapping[str, Any], score: str) -> dict[str, float]:
    return {seed: one["measures"]["oracle"][score]["average"] for seed, one in arm["seeds"].items() if one["finished"]}


def _percent(found: Mapping[str, Any] | None) -> str | None:
    if not found:
        return None
    half = f" ±{100 * (found['upper'] - found['mean']):.1f}" if found["upper"] is not None else ""
    return f"{100 * found['mean']:.1f}{half}"


def _number(found: Mapping[str, Any] | None) -> str | None:
    return f"{found['mean']:.3f}" if found else None
