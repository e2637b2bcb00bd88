"""What the forgetting study has found, kept beside the results: another machine goes on from it.

    chosen/<arm>.json          the value of an arm's knob, and its trials on the tuning tasks
    <arm>-seed-<n>.json        what one arm and seed found on the reported tasks

Each names the plan that it was found with, and counts only for the same plan.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.sequences.report import summarise_arm

from .forgetting_plan import REPORTED_TASKS, SHARED, TUNING_TASKS, Arm
from .results import FOLDER, provenance

COVERAGE = "0.99"  # of the classifier that routes
ABOUT = ("mode", "family", "exploratory", "methods", "settings")
Document = dict[str, Any]


@dataclass(frozen=True)
class Kept:
    """The files below `folder`."""

    folder: Path = FOLDER / "forgetting"

    def choice(self, arm: str, plan: object) -> Document | None:
        """`value` and `trials` of an arm's tuning; `None` where they are not known for this plan."""
        return _read(self._choice(arm), plan)

    def keep_choice(self, arm: str, plan: object, choice: Mapping[str, object]) -> None:
        """Keep an arm's tuning."""
        _write(self._choice(arm), plan, choice)

    def run(self, arm: str, seed: int, plan: object) -> Document | None:
        """`about` the arm and what its seed `found`; `None` where that is not known for this plan."""
        return _read(self._run(arm, seed), plan)

    def keep_run(self, arm: str, seed: int, plan: object, run: Mapping[str, Any]) -> None:
        """Keep what an arm and seed found, but for the loss of every step: that is most of it."""
        stages = [{**stage, "losses": []} for stage in run["found"]["stages"]]
        _write(self._run(arm, seed), plan, {**run, "found": {**run["found"], "stages": stages}})

    def _choice(self, arm: str) -> Path:
        return self.folder / "chosen" / f"{arm}.json"

    def _run(self, arm: str, seed: int) -> Path:
        return self.folder / f"{arm}-seed-{seed}.json"


def _read(file: Path, plan: object) -> Document | None:
    if not file.exists():
        return None
    found: Document = json.loads(file.read_text(encoding="utf-8"))
    return found if found["plan"] == plan else None


def _write(file: Path, plan: object, found: Mapping[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    document = {"plan": plan, **provenance(), **found}
    file.write_text(json.dumps(document, ensure_ascii=False) + "\n", encoding="utf-8")


def choice_plan(arm: Arm, tokens: int) -> dict[str, object]:
    """What a choice depends on, as JSON has it."""
    trials = [arm.plan(value, name=arm.trial(value)) for value in arm.trials]
    return {"tasks": list(TUNING_TASKS), "settings": {**SHARED, "max_tokens": tokens}, "trials": trials}


def run_plan(arm: Mapping[str, Any], tokens: int) -> dict[str, object]:
    """What an arm's figures depend on beside the seed, as JSON has it."""
    one = {key: value for key, value in arm.items() if key != "seeds"}
    settings = {**SHARED, "max_tokens": tokens}
    return {"tasks": list(REPORTED_TASKS), "settings": settings, "coverage": COVERAGE, "arm": one}


def summarise_runs(runs: Mapping[int, Mapping[str, Any] | None]) -> dict[str, Any]:
    """One arm's kept runs as a report has them."""
    known = {str(seed): run for seed, run in runs.items() if run is not None}
    about = next(iter(known.values()))["about"] if known else {}
    return summarise_arm(about, {seed: run["found"] for seed, run in known.items()})
