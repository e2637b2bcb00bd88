"""The forgetting study goes on from what is kept beside the results."""

from pathlib import Path
from typing import Any

import pytest

from bench.forgetting import Study
from bench.forgetting_kept import Kept, choice_plan, run_plan, summarise_runs
from bench.forgetting_pictures import with_matrices
from bench.forgetting_plan import CORE, reported_arms

TOKENS = 1_000
SEQUENTIAL = next(arm for arm in CORE if arm.name == "sequential")
ISOLATED = next(arm for arm in CORE if arm.name == "isolated")


def run(exact: float, *, matrix: Any = None) -> dict[str, Any]:
    measures = {"exact": {"average": exact}, "nll": {"average": 1.0}}
    found = {"finished": True, "failed": None, "R": matrix, "regret": {"exact": 0.0}, "stages": []}
    about = {"mode": "shared", "family": "sequential", "exploratory": False, "methods": [], "settings": {}}
    return {"about": about, "found": {**found, "measures": {"oracle": measures, "routed": measures}}}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    made = Study(tmp_path / "work", tmp_path / "data", lanes=1, trains=False)
    made.kept = Kept(tmp_path / "kept")
    return made


def test_what_is_kept_counts_only_for_the_plan_it_was_found_with(tmp_path: Path) -> None:
    kept = Kept(tmp_path)
    kept.keep_run("sequential", 1, {"lr": 1}, run(0.5))
    assert kept.run("sequential", 1, {"lr": 2}) is None
    assert kept.run("sequential", 2, {"lr": 1}) is None
    found = kept.run("sequential", 1, {"lr": 1})
    assert found is not None
    assert found["found"] == run(0.5)["found"]


def test_every_arms_choice_in_the_repository_is_known_for_the_plan_in_force() -> None:
    kept = Kept()
    for arm in CORE:
        choice = kept.choice(arm.name, choice_plan(arm, 200_000))
        assert choice is not None
        assert choice["value"] in arm.trials
        assert kept.run(arm.name, 0, run_plan(arm.plan(choice["value"]), 600_000)) is not None


def test_a_report_is_made_of_the_kept_seeds_and_compares_those_that_both_arms_have(study: Study) -> None:
    chosen = {"sequential": 5e-4, "isolated": 2e-3}
    _, isolated, sequential = reported_arms([ISOLATED, SEQUENTIAL], chosen)
    for seed, exact in ((0, 0.1), (1, 0.3)):
        study.kept.keep_run("sequential", seed, run_plan(sequential, TOKENS), run(exact))
    study.kept.keep_run("isolated", 1, run_plan(isolated, TOKENS), run(0.7))
    found = study.report(chosen, (0, 1, 2), (0,), TOKENS)
    assert set(found["arms"]) == {"sequential", "isolated"}
    average = found["arms"]["sequential"]["summary"]["oracle"]["exact"]["average"]
    assert average["mean"] == pytest.approx(0.2)
    assert average["seeds"] == 2
    assert average["upper"] - average["mean"] == pytest.approx(12.706 * 0.1, rel=1e-3)  # t(1, 0.975) · s / √2
    assert found["comparisons"]["exact"]["isolated"]["mean"] == pytest.approx(0.4)
    assert found["comparisons"]["exact"]["isolated"]["seeds"] == 1


def test_a_seed_whose_matrix_is_not_kept_counts_in_the_means_but_not_in_the_pictures_of_it() -> None:
    arm = summarise_runs({0: run(0.1), 1: run(0.3, matrix={"oracle": {}})})
    assert arm["finished"] == 2
    assert set(with_matrices(arm)["seeds"]) == {"1"}
