"""What the classifier's benchmark is made of: who may see which rows, the measures, the typed-again sentences."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from adapters.rows import LabelledText
from bench.classifier_data import Fold, Task, banking77, clinc150, few_shot, first_labels, suite
from bench.classifier_measures import (
    Said,
    auroc,
    calibration_error,
    calibration_floor,
    equal_mass,
    equal_width,
    measures,
)
from bench.classifier_queries import drop_word, with_typos
from bench.classifier_routes import compound_routes
from router.classify.evaluate import expected_calibration_error

INTENTS = ("pay_bill", "book_flight", "play_music")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder in the layout of the real one: 20 training rows and 6 validation rows an intent."""
    parts = {
        part: [[f"{part} {intent} {number}", intent] for intent in INTENTS for number in range(count)]
        for part, count in (("train", 20), ("val", 6), ("test", 5))
    }
    parts |= {f"oos_{part}": [[f"oos {part} {n}", "oos"] for n in range(4)] for part in ("train", "val", "test")}
    for folder in ("clinc150", "banking77", "suite"):
        (tmp_path / folder).mkdir()
    (tmp_path / "clinc150" / "data_full.json").write_text(json.dumps(parts))
    for part in ("train", "test"):
        with (tmp_path / "banking77" / f"{part}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([["text", "category"], *parts[part]])
    for part in ("train", "val", "test"):
        name = {"val": "dev"}.get(part, part)
        lines = [json.dumps({"text": text, "label": label}) for text, label in parts[part]]
        (tmp_path / "suite" / f"router_{name}.jsonl").write_text("\n".join(lines))
    return tmp_path


def texts(task: Task) -> tuple[set[str], set[str], set[str]]:
    """Texts that are fitted on, that calibrate and that are judged."""
    calibration = {row.text for fold in task.folds for row in fold.calibration}
    return {row.text for row in task.train}, calibration, {row.text for row in task.judged}


@pytest.mark.parametrize("read", [clinc150, banking77, suite])
def test_dev_reads_no_test_row_and_judges_no_row_that_was_fitted_on(data: Path, read: object) -> None:
    assert callable(read)
    for file in (data / "banking77" / "test.csv", data / "suite" / "router_test.jsonl"):
        file.unlink()
    fitted, calibration, judged = texts(read(data, "dev"))
    assert not fitted & (calibration | judged)
    assert not any("test" in text for text in fitted | calibration | judged)


@pytest.mark.parametrize("read", [clinc150, banking77, suite])
def test_each_dev_row_is_judged_once_by_what_the_other_half_calibrates(data: Path, read: object) -> None:
    assert callable(read)
    first, second = read(data, "dev").folds
    assert (first.calibration, first.judged) == (second.judged, second.calibration)
    assert not {row.text for row in first.calibration} & {row.text for row in first.judged}


def test_clinc150s_out_of_scope_validation_and_test_rows_are_never_fitted_on(data: Path) -> None:
    task = clinc150(data, "test")
    fitted = {row.text for row in [*task.train, *task.oos_train]}
    assert {text for text in fitted if text.startswith("oos")} == {f"oos train {n}" for n in range(4)}
    assert sum(row.label == "oos" for row in task.folds[0].judged) == 4


def test_a_draw_of_k_rows_is_the_same_every_time_and_another_for_another_seed(data: Path) -> None:
    train = clinc150(data, "dev").train
    drawn = few_shot(train, 5, 0)
    assert drawn == few_shot(train, 5, 0) != few_shot(train, 5, 1)
    assert len({row.text for row in drawn}) == 15
    assert all(sum(row.label == label for row in drawn) == 5 for label in {row.label for row in train})


def test_a_trial_keeps_so_many_labels_and_the_negatives(data: Path) -> None:
    task = first_labels(clinc150(data, "dev"), 2)
    assert {row.label for row in task.train} == {"book-flight", "pay-bill"}
    assert {row.label for row in task.folds[0].judged} == {"book-flight", "pay-bill", "oos"}


def test_an_abstained_row_in_scope_is_a_miss_and_a_kept_negative_too() -> None:
    said = [
        Said("a", "a", 0.9, 2.0, 1.0, 0.9),
        Said("a", "a", 0.6, 0.5, 1.0, 0.6),
        Said("b", "a", 0.7, 1.5, 1.0, 0.2),
        Said("oos", "b", 0.3, 0.1, 1.0, None),
        Said("base", "b", 0.8, 1.8, 1.0, None),
    ]
    found = measures(said)
    assert (found["top"], found["final"], found["coverage"]) == pytest.approx((2 / 3, 1 / 3, 2 / 3))
    assert (found["oos_recall"], found["accuracy"]) == pytest.approx((1 / 2, 2 / 5))
    assert found["auroc"] == pytest.approx(4 / 6)  # pairs (in scope, negative) in the right order, counted by hand
    assert found["nll"] == pytest.approx(-np.log([0.9, 0.6, 0.2]).mean())


def test_auroc_counts_ties_half() -> None:
    assert auroc([1.0, 1.0], [1.0, 0.0]) == pytest.approx(3 / 4)


def test_the_calibration_error_is_the_routers_own() -> None:
    random = np.random.default_rng(3)
    confidence = random.random(200)
    right = random.random(200) < confidence**2
    assert calibration_error(confidence, right, equal_mass) == pytest.approx(
        expected_calibration_error(confidence, right)
    )


def test_bins_of_equal_width_by_hand() -> None:
    # two bins: [14/15, 1] holds 1.0 (right) and 0.95 (wrong): gap |1.95 - 1| = 0.95; 0.5 (right) alone: 0.5
    confidence, right = np.array([1.0, 0.95, 0.5]), np.array([True, False, True])
    assert calibration_error(confidence, right, equal_width) == pytest.approx((0.95 + 0.5) / 3)


def test_the_floor_of_certain_confidences_is_zero_and_of_a_coins_is_not() -> None:
    assert calibration_floor(np.ones(100)) == (0.0, 0.0)
    mean, high = calibration_floor(np.full(150, 0.5))
    # |binomial(10, ½) / 10 − ½| has the mean 252 / 2048 = 0.123, by its definition; 15 bins of it are averaged
    assert mean == pytest.approx(0.123, abs=0.004)
    assert high > mean


def test_a_dropped_word_leaves_the_others_in_order() -> None:
    drawn = {drop_word("please pay my bill", np.random.default_rng(seed)) for seed in range(50)}
    assert drawn == {"pay my bill", "please my bill", "please pay bill", "please pay my"}


def test_two_typos_always_change_something_and_the_same_seed_makes_the_same_ones() -> None:
    text = "when does my flight land"
    for seed in range(300):
        typed = with_typos(text, 2, np.random.default_rng(seed))
        assert typed != text
        assert abs(len(typed) - len(text)) <= 2
        assert typed == with_typos(text, 2, np.random.default_rng(seed))


def test_made_routes_share_no_sentence_between_fitted_and_judged_texts(data: Path) -> None:
    rows = compound_routes(clinc150(data, "dev"), 3, fitted=30, calibration=12, judged=12)
    assert [len(rows.fitted), len({row.label for row in rows.fitted})] == [30, 3]
    halves = [{half for row in part for half in row.text.split(" and ")} for part in (rows.fitted, rows.judged)]
    assert not halves[0] & halves[1]
    assert len(set(rows.fitted)) == 30


def test_made_routes_are_fewer_rows_where_sentences_do_not_make_more() -> None:
    train = [LabelledText(f"{label} {n}", label) for label in ("a", "b") for n in range(2)]
    task = Task("t", train, [Fold(train, train)])
    assert len(compound_routes(task, 1, fitted=100, calibration=1, judged=1).fitted) == 4
    with pytest.raises(ValueError, match="2 routes asked for, 1 pairs"):
        compound_routes(task, 2, fitted=1, calibration=1, judged=1)
