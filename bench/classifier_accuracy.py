"""Accuracy, out-of-scope detection and calibration on CLINC150, BANKING77 and the suite's router rows.

    python -m bench.classifier_accuracy [--encoder SOURCE] [--split test]

Needs the data folder (`../shared/data` or $BRANCHLINE_DATA). SCIENCE.md §8 says who sees which rows; `dev` prints, and
`test` is looked at once. "Top route" is the accuracy before abstention; "final decision" counts an abstained row as a
miss. A draw of k rows a label sees those rows and nothing else: its abstention is learned out of fold. `--general N`
gives fits without any negative made prompts that belong to no route (`router.classify.general`). A route's name is
one example more of it, in every fit. With `--part` the results are filed under that part's name.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev

from .classifier_arms import Arm, Ours
from .classifier_command import encoder_of, parser_of, publish
from .classifier_data import Rows, Split, Task, banking77, clinc150, few_shot, first_labels, suite
from .classifier_measures import mean_measures, measures
from .data import find_data
from .results import Row

COVERAGE = 0.95
SUITE_COVERAGE = 0.985
TOP, FINAL = "accuracy, top route before abstention", "accuracy, final decision"
TITLES = {
    "sparse": "sparse only",
    "encoder": "with encoder",
    "tuned": "with an encoder trained on the rows",
    "student": "with a student of an encoder trained on the rows",
}
PARTS = ("clinc150", "clinc150-shots", "banking77", "banking77-shots", "suite")
TARGETS: Mapping[str, tuple[str, str]] = {  # sparse only, with encoder
    f"CLINC150, {TOP}": ("≥ 93.0", "≥ 97.0, published best 97.5"),
    f"CLINC150 10-shot, {TOP}": ("≥ 84", "≥ 93.3, published best 94.8"),
    f"CLINC150 5-shot, {TOP}": ("≥ 77", "≥ 90, published best 92.6"),
    f"CLINC150 1-shot, {TOP}": ("≥ 45", "≥ 67"),
    "CLINC150, OOS AUROC": ("≥ 95.8", "≥ 98.0, published best 98.4"),
    "CLINC150, OOS recall": ("≥ 80", "≥ 90"),
    "CLINC150, coverage": ("95 ± 1.35", "95 ± 1.35"),
    "CLINC150 with oos_train, OOS AUROC": ("≥ 96.5", "≥ 98.4"),
    "CLINC150 with oos_train, OOS recall": ("≥ 84", "≥ 93"),
    "CLINC150 with oos_train, coverage": ("95 ± 1.35", "95 ± 1.35"),
    "CLINC150, ECE": ("≤ 0.010", "≤ the 95th percentile of its floor, published best 0.0094"),
    f"BANKING77, {TOP}": ("≥ 92.0", "≥ 93.7, published best 93.7"),
    f"BANKING77 10-shot, {TOP}": ("≥ 75", "≥ 87, published best 89.8"),
    "suite router, base recall": ("≥ 93", "≥ 96, floor 51"),
    "suite router, OOS AUROC": ("≥ 99.1", "≥ 99.6"),
    "suite router, coverage": ("98.5 ± 2.6", "98.5 ± 2.6"),
}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured of an arm. `labels`: a trial on so many of each data set."""

    data: Path
    split: Split
    parts: Sequence[str]
    draws: int
    labels: int | None

    def task(self, task: Task) -> Task:
        return task if self.labels is None else first_labels(task, self.labels)


def main() -> None:
    """Measure Branchline's classifier with or without an encoder."""
    parser = parser_of(__doc__)
    add_plan(parser)
    parser.add_argument("--general", type=int, default=0, metavar="N", help="draw N general prompts for each fit")
    parser.add_argument("--finetune", action="store_true", help="train the encoder on the rows of each fit: minutes")
    parser.add_argument("--student", type=int, metavar="LAYERS", help="distil the trained encoder into so many layers")
    arguments = parser.parse_args()
    arm = arm_of(arguments)
    title = ", ".join(["The classifier's accuracy", TITLES[arm.name], *(arguments.part or ())])
    name = "_".join(["classifier_accuracy", arm.name, *(arguments.part or ())])
    publish(name, title, table(arm, plan_of(arguments)), arguments)


def arm_of(arguments: argparse.Namespace) -> Arm:
    """Branchline's classifier as the options want it."""
    if not (arguments.finetune or arguments.student):
        return Ours(encoder_of(arguments), arguments.general)
    if not (arguments.finetune and arguments.encoder):
        raise SystemExit("--student needs --finetune, and --finetune needs --encoder")
    from .classifier_tuned import tuned_arm

    return tuned_arm(arguments)


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The options that `plan_of` reads."""
    parser.add_argument("--part", action="append", choices=PARTS, help="measure this alone; may be repeated")
    parser.add_argument("--draws", type=int, default=10, help="of k rows a label")
    parser.add_argument("--labels", type=int, help="a trial on so many labels of each data set")


def plan_of(arguments: argparse.Namespace) -> Plan:
    parts = tuple(arguments.part or PARTS)
    return Plan(find_data(), arguments.split, parts, arguments.draws, arguments.labels)


def table(arm: Arm, plan: Plan) -> Iterator[Row]:
    """`measured`, the targets in the notes."""
    column = 0 if arm.name == "sparse" else 1
    for row in measured(arm, plan):
        target = TARGETS[row.what][column] if row.what in TARGETS else ""
        yield replace(row, note="; ".join(filter(None, [row.note, target and f"target {target}"])))


def measured(arm: Arm, plan: Plan) -> Iterator[Row]:
    """Every row that `plan` asks for."""
    clinc, banking = plan.task(clinc150(plan.data, plan.split)), plan.task(banking77(plan.data, plan.split))
    if "clinc150" in plan.parts:
        found = judge(arm, clinc, clinc.train, COVERAGE)
        yield from [*accuracy_rows("CLINC150", found), *oos_rows("CLINC150", found), *calibration_rows(found)]
        found = judge(arm, clinc, [*clinc.train, *clinc.oos_train], COVERAGE)
        yield from [*accuracy_rows("CLINC150 with oos_train", found), *oos_rows("CLINC150 with oos_train", found)]
    if "clinc150-shots" in plan.parts:
        for shots in (10, 5, 1):
            yield from shot_rows(arm, f"CLINC150 {shots}-shot", clinc, shots, plan.draws)
    if "banking77" in plan.parts:
        yield from accuracy_rows("BANKING77", judge(arm, banking, banking.train, COVERAGE))
    if "banking77-shots" in plan.parts:
        yield from shot_rows(arm, "BANKING77 10-shot", banking, 10, plan.draws)
    if "suite" in plan.parts:
        router = plan.task(suite(plan.data, plan.split))
        yield from suite_rows(judge(arm, router, router.train, SUITE_COVERAGE))


def judge(arm: Arm, task: Task, fitted: Rows, coverage: float) -> dict[str, float]:
    """The measures of `task`, the mean over its folds."""
    said = [arm.judge(fitted, fold.calibration, fold.judged, coverage) for fold in task.folds]
    return {**mean_measures([measures(fold) for fold in said]), "judged": sum(map(len, said))}


def accuracy_rows(name: str, found: Mapping[str, float]) -> Iterator[Row]:
    kept = f"{100 * COVERAGE:g} % to be kept"
    yield Row(f"{name}, {TOP}", 100 * found["top"], "%", "in-scope rows")
    yield Row(f"{name}, {FINAL}", 100 * found["final"], "%", f"in-scope rows, {kept}")
    yield Row(f"{name}, coverage", 100 * found["coverage"], "%", f"in-scope rows not abstained, {kept}")


def oos_rows(name: str, found: Mapping[str, float]) -> Iterator[Row]:
    coverage = f"threshold from dev rows; {100 * found['coverage']:.2f} % of in-scope rows kept"
    yield Row(f"{name}, OOS AUROC", 100 * found["auroc"], "%", f"{found['judged']:.0f} rows judged in all")
    yield Row(f"{name}, OOS recall", 100 * found["oos_recall"], "%", coverage)


def calibration_rows(found: Mapping[str, float]) -> Iterator[Row]:
    yield Row("CLINC150, ECE", found["ece"], "", "top route before abstention, 15 bins of equal mass")
    yield Row("CLINC150, ECE, bins of equal width", found["ece_equal_width"], "", "15 bins")
    yield Row("CLINC150, floor of the ECE, mean", found["ece_floor"], "", "labels redrawn from the confidences")
    yield Row("CLINC150, floor of the ECE, 95th percentile", found["ece_floor_95"], "", "1,000 redraws")
    if "nll" in found:
        yield Row("CLINC150, NLL", found["nll"], "nats", "in-scope rows")


def shot_rows(arm: Arm, name: str, task: Task, shots: int, draws: int) -> Iterator[Row]:
    """Mean and standard deviation over draws of `shots` rows a label."""
    said = (arm.judge(few_shot(task.train, shots, draw), (), task.judged, COVERAGE) for draw in range(draws))
    found = [measures(one) for one in said]
    for what, measure in ((TOP, "top"), (FINAL, "final"), ("coverage", "coverage")):
        values = [100 * one[measure] for one in found]
        spread = f"sd {stdev(values):.2f} of {draws} draws" if draws > 1 else "one draw"
        yield Row(f"{name}, {what}", fmean(values), "%", spread)


def suite_rows(found: Mapping[str, float]) -> Iterator[Row]:
    kept = f"{100 * SUITE_COVERAGE:g} % to be kept; base rows of router_train fitted on"
    yield Row("suite router, base recall", 100 * found["oos_recall"], "%", kept)
    yield Row("suite router, OOS AUROC", 100 * found["auroc"], "%", f"{found['judged']:.0f} rows judged in all")
    yield Row("suite router, adapter recall", 100 * found["final"], "%", kept)
    yield Row("suite router, coverage", 100 * found["coverage"], "%", kept)
    yield Row("suite router, accuracy", 100 * found["accuracy"], "%", f"final decision, all rows; {kept}")


if __name__ == "__main__":
    main()
