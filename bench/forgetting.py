"""The forgetting study: what every method keeps of earlier tasks, and what it costs in learning. One resumable command:

    python -m bench.forgetting [--arms core|all] [--seed 0 …] [--exploratory-seeds 1] [--lanes 2]

Needs the data folder (`../shared/data` or $BRANCHLINE_DATA). `bench.forgetting_plan` is the plan. First the tuning
tasks choose each arm's setting on dev rows, then the reported tasks are trained with it and scored on test rows,
oracle-routed and routed by a classifier fitted on the tasks seen so far plus base. Everything is done through
`branchline sequence` and `branchline classifier`, and what is done is not done again: what an arm and seed found
is kept in `bench/results/forgetting/`, for other machines too, and the half-trained ones in `--work`. `--lanes`
processes of one thread each share the arms and seeds, and the GPU where there is one (CUDA's MPS lets them compute at
the same time).
"""

import argparse
import json
import math
import subprocess
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import yaml

from trainer.sequences.config import read_sequence
from trainer.sequences.folder import SequenceFolder
from trainer.sequences.report import compare, summarise_sequence

from .data import find_data
from .forgetting_kept import ABOUT, COVERAGE, Kept, choice_plan, run_plan, summarise_runs
from .forgetting_pictures import draw_pictures
from .forgetting_plan import (
    CORE,
    CORE_SEEDS,
    EXPLORATORY,
    REPORTED_TASKS,
    SHARED,
    TUNING_TASKS,
    Arm,
    reported_arms,
    tuning_arms,
)
from .forgetting_rows import study_rows
from .gateway import BRANCHLINE
from .results import write_results

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "quickstart" / "base"
TOKENS = 600_000
TUNING_TOKENS = 200_000
REFERENCE = "sequential"
READABLE = 0.2  # exact match below it says less than NLL, SCIENCE.md §7


def main() -> None:
    """Tune, train, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arms", choices=("core", "all"), default="core")
    parser.add_argument("--seed", type=int, action="append", help="of the reported sequence; may be repeated")
    parser.add_argument("--exploratory-seeds", type=int, default=1, help="how many of them exploratory arms get")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="of each task, padding not counted")
    parser.add_argument("--tuning-tokens", type=int, default=TUNING_TOKENS, help="of each tuning task")
    parser.add_argument("--lanes", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / ".branchline" / "forgetting", help="keeps checkpoints")
    parser.add_argument("--report", action="store_true", help="train nothing: report what is kept")
    arguments = parser.parse_args()
    data = find_data() / "suite"
    study = Study(arguments.work, data, arguments.lanes, trains=not arguments.report)
    chosen, trials = study.tune(CORE if arguments.arms == "core" else CORE + EXPLORATORY, arguments.tuning_tokens)
    seeds = tuple(arguments.seed or CORE_SEEDS)
    found = study.report(chosen, seeds, seeds[: arguments.exploratory_seeds], arguments.tokens)
    named = "".join(f" --seed {seed}" for seed in arguments.seed or ())
    if arguments.arms == "all":
        named += f" --exploratory-seeds {arguments.exploratory_seeds}"
    tokens = f"--tokens {arguments.tokens} --tuning-tokens {arguments.tuning_tokens}"
    command = f"python -m bench.forgetting --arms {arguments.arms}{named} {tokens}"
    write_results("forgetting", "What is forgotten", study_rows(chosen, trials, found), command)
    draw_pictures(found)


class Study:
    """The study's folder, and the commands that fill it. What is kept (`Kept`) is not trained again; without `trains`
    nothing is.
    """

    def __init__(self, work: Path, data: Path, lanes: int, *, trains: bool) -> None:
        self.work, self.data, self.lanes, self.trains = work, data, lanes, trains
        self.kept = Kept()
        work.mkdir(parents=True, exist_ok=True)

    def tune(self, arms: Sequence[Arm], tokens: int) -> tuple[dict[str, float], dict[str, Any]]:
        """The value of each arm's knob, by `best_trial`. And all trials: how each trades learning for keeping."""
        plan = self.plan(TUNING_TASKS, tuning_arms(arms), (0,), tokens) | {"split": "dev"}
        left = [arm for arm in arms if self.kept.choice(arm.name, choice_plan(arm, tokens)) is None]
        if left and self.trains:
            self.sequence("tuning", plan, [(arm.trial(value), 0) for arm in left for value in arm.trials])
            found = self.found("tuning", plan)["arms"]
            for arm in left:
                trials = {arm.trial(value): {"summary": found[arm.trial(value)]["summary"]} for value in arm.trials}
                choice = {"value": best_trial(arm, trials), "trials": trials}
                self.kept.keep_choice(arm.name, choice_plan(arm, tokens), choice)
        choices = {arm.name: self.kept.choice(arm.name, choice_plan(arm, tokens)) for arm in arms}
        known = {name: choice for name, choice in choices.items() if choice is not None}
        trials = {name: trial for choice in known.values() for name, trial in choice["trials"].items()}
        return {name: choice["value"] for name, choice in known.items()}, trials

    def report(
        self, chosen: Mapping[str, float], seeds: Sequence[int], exploratory_seeds: Sequence[int], tokens: int
    ) -> dict[str, Any]:
        """The reported tasks: the arms with a chosen setting; the exploratory ones with their own seeds."""
        arms = reported_arms(arms_of(CORE, chosen), chosen)
        fewer = {"seeds": list(exploratory_seeds)}
        arms += [arm | fewer for arm in reported_arms(arms_of(EXPLORATORY, chosen), chosen)[1:]]
        wanted = [(arm, seed) for seed in seeds for arm in arms if seed in arm.get("seeds", seeds)]
        if self.lanes > len(arms):  # else all lanes would wait for the first stage of one seed, which its arms share
            wanted.sort(key=lambda job: -arms.index(job[0]))
        left = [(arm["name"], seed) for arm, seed in wanted if self.run(arm, seed, tokens) is None]
        if left and self.trains:
            plan = self.plan(REPORTED_TASKS, arms, seeds, tokens) | {"decisions": self.decisions()}
            plans = {arm["name"]: run_plan(arm, tokens) for arm in arms}
            self.sequence("reported", plan, left, lambda arm, found, seed: self.keep(arm, found, seed, plans[arm]))
        found = {
            arm["name"]: summarise_runs({seed: self.run(arm, seed, tokens) for seed in arm.get("seeds", seeds)})
            for arm in arms
        }
        known = {name: arm for name, arm in found.items() if arm["seeds"]}
        names = [task.replace("_", "-") for task in REPORTED_TASKS]
        return {
            "tasks": names,
            "reference": REFERENCE,
            "arms": known,
            "comparisons": compare(known, REFERENCE),
        }

    def run(self, arm: Mapping[str, Any], seed: int, tokens: int) -> dict[str, Any] | None:
        """What is kept of an arm and seed."""
        return self.kept.run(arm["name"], seed, run_plan(arm, tokens))

    def keep(self, arm: str, found: Mapping[str, Any], seed: int, plan: Mapping[str, object]) -> None:
        """Keep what an arm and seed found."""
        about = {key: found[key] for key in ABOUT}
        self.kept.keep_run(arm, seed, plan, {"about": about, "found": found["seeds"][str(seed)]})

    def plan(
        self, tasks: Sequence[str], arms: Sequence[Mapping[str, object]], seeds: Sequence[int], tokens: int
    ) -> dict[str, object]:
        """What `branchline sequence` reads."""
        files = [
            {"name": task.replace("_", "-")}
            | {key: str(self.data / task / f"{part}.jsonl") for key, part in PARTS.items()}
            for task in tasks
        ]
        settings = {**SHARED, "max_tokens": tokens}
        return {
            "base": str(BASE),
            "tasks": files,
            "arms": list(arms),
            "seeds": list(seeds),
            "settings": settings,
            "precision": "bfloat16",
            "threads": 1,
        }

    def sequence(
        self,
        out: str,
        plan: Mapping[str, Any],
        jobs: Sequence[tuple[str, int]],
        on_done: Callable[[str, Mapping[str, Any], int], None] = lambda arm, found, seed: None,
    ) -> None:
        """Train arms and seeds of a plan, the next one on the lane that is free; `on_done` is called after each with
        what the arm found. Each is a plan of its own: a report of all of them after each would take longer and longer.
        """
        folder = self.work / out

        def do(job: tuple[str, int]) -> None:
            name, seed = job
            file = self.work / f"{out}-{name}-{seed}.yaml"
            only = {**next(arm for arm in plan["arms"] if arm["name"] == name), "seeds": [seed]}
            one = {**plan, "arms": [only], "seeds": [seed]}
            file.write_text(yaml.safe_dump(one, sort_keys=False), encoding="utf-8")
            words = [BRANCHLINE, "sequence", str(file), "--out", str(folder), "--arm", name, "--seed", str(seed)]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
            on_done(name, self.found(out, one)["arms"][name], seed)

        with ThreadPoolExecutor(self.lanes) as lanes:
            started = [lanes.submit(do, job) for job in jobs]
            try:
                wait(started)
            except KeyboardInterrupt:
                lanes.shutdown(cancel_futures=True)
                raise
        for one in started:
            one.result()

    def found(self, out: str, plan: Mapping[str, object]) -> dict[str, Any]:
        """The report of a plan."""
        found: dict[str, Any] = summarise_sequence(read_sequence(plan), SequenceFolder(self.work / out))
        return found

    def decisions(self) -> list[str]:
        """One file of routing decisions per stage, by a classifier fitted on the tasks up to it plus base."""
        rows = self.work / "judged.jsonl"
        if not rows.exists():
            texts = [(self.data / task / "test.jsonl").read_text(encoding="utf-8") for task in REPORTED_TASKS]
            rows.write_text("".join(texts), encoding="utf-8")
        return [str(self._decide(stage, rows)) for stage in range(1, len(REPORTED_TASKS) + 1)]

    def _decide(self, stage: int, rows: Path) -> Path:
        decisions = self.work / f"decisions-{stage}.jsonl"
        if decisions.exists():
            return decisions
        seen = {*REPORTED_TASKS[:stage], "base"}
        lines = (self.data / "router_train.jsonl").read_text(encoding="utf-8").splitlines()
        labelled = [row for row in map(json.loads, lines) if row["label"] in seen]
        examples, classifier = self.work / f"router-{stage}.jsonl", self.work / f"classifier-{stage}"
        named = [{**row, "label": row["label"].replace("_", "-")} for row in labelled]
        examples.write_text("".join(json.dumps(row) + "\n" for row in named), encoding="utf-8")
        home = ("--home", str(self.work / "home"))
        fit = ("classifier", "fit", "--examples", str(examples), "--coverage", COVERAGE, "--out", str(classifier))
        decide = ("classifier", "decide", str(rows), "--classifier", str(classifier), "--out", str(decisions))
        for command in (fit, decide):
            subprocess.run([BRANCHLINE, *command, *home], check=True, stdout=subprocess.DEVNULL)
        return decisions


def arms_of(arms: Sequence[Arm], chosen: Mapping[str, float]) -> list[Arm]:
    """The arms that a setting was chosen for."""
    return [arm for arm in arms if arm.name in chosen]


PARTS = {"data": "train", "eval": "test", "dev": "dev"}


def best_trial(arm: Arm, trials: Mapping[str, Any]) -> float:
    """The value with the best mean over all tasks after the last stage: of exact match where any trial of the arm
    reaches `READABLE`, else of NLL.
    """
    exact = {value: final(trials[arm.trial(value)], "exact", worst=0.0) for value in arm.trials}
    if max(exact.values()) >= READABLE:
        return max(exact, key=lambda value: exact[value])
    nll = {value: final(trials[arm.trial(value)], "nll", worst=math.inf) for value in arm.trials}
    return min(nll, key=lambda value: nll[value])


def final(trial: Mapping[str, Any], score: str, *, worst: float) -> float:
    """Mean score over all tasks after the last stage; `worst` for a trial that diverged."""
    measures = trial["summary"]["oracle"][score]
    return float(measures["average"]["mean"]) if measures else worst


if __name__ == "__main__":
    main()
