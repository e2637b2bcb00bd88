"""Evaluation figures, by hand and by definition (SCIENCE.md §8)."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.classify.evaluate import evaluate, evaluate_scores, expected_calibration_error
from router.classify.fit import fit_classifier
from router.types import Scores
from tests.classifier_rows import Meanings, base_rows, routes_rows

# (label, top route, confidence, score); threshold 0.5
BY_HAND = [
    ("a", "a", 0.9, 0.9),  # right
    ("a", "a", 0.6, 0.4),  # right route, abstained: a miss
    ("a", "b", 0.8, 0.8),  # wrong
    ("b", "b", 0.7, 0.7),  # right
    ("base", "a", 0.5, 0.6),  # routed: wrong
    ("base", "b", 0.5, 0.3),  # kept
    ("oos", "b", 0.5, 0.1),  # kept
]


def made(rows: list[tuple[str, str, float, float]]) -> dict[str, float | None]:
    found = [Scores(route, confidence, score, 0.5) for _, route, confidence, score in rows]
    return asdict(evaluate_scores(found, [label for label, *_ in rows]))


def test_every_figure_by_hand() -> None:
    found = made(BY_HAND)
    assert found["n"] == 7
    assert found["accuracy"] == pytest.approx(4 / 7)  # rows 1, 4, 6, 7
    assert found["adapter_recall"] == pytest.approx(2 / 4)
    assert found["base_recall"] == pytest.approx(2 / 3)
    assert found["macro_recall"] == pytest.approx((1 / 3 + 1 + 2 / 3) / 3)  # a, b, base
    assert found["coverage"] == pytest.approx(3 / 4)
    # Pairs (negative below in-scope): 0.6 is below 0.9, 0.8, 0.7; 0.3 and 0.1 are below all four: 11 of 12.
    assert found["oos_auroc"] == pytest.approx(11 / 12)
    # Lowest scores first: oos, base, a (0.4), base: precision 1, 1, 3/4 at the three negatives.
    assert found["oos_aupr"] == pytest.approx((1 + 1 + 3 / 4) / 3)
    # 95 % of three negatives are all three: flagged up to 0.6, which flags one of four in-scope rows.
    assert found["fpr95"] == pytest.approx(1 / 4)
    # 15 bins over 4 rows: each its own. |0.6 − 1| + |0.7 − 1| + |0.8 − 0| + |0.9 − 1| over 4.
    assert found["ece"] == pytest.approx((0.4 + 0.3 + 0.8 + 0.1) / 4)


def test_figures_without_their_rows_are_null() -> None:
    in_scope = made([row for row in BY_HAND if row[0] in "ab"])
    assert {key for key, value in in_scope.items() if value is None} == {
        "base_recall",
        "oos_auroc",
        "oos_aupr",
        "fpr95",
    }
    negatives = made([row for row in BY_HAND if row[0] not in "ab"])
    assert {key for key, value in negatives.items() if value is not None} == {
        "accuracy",
        "macro_recall",
        "base_recall",
        "n",
    }
    assert {key for key, value in made([]).items() if value is not None} == {"n"}


def test_calibration_error_of_bins_of_equal_mass_by_hand() -> None:
    """Two bins: (0.1, 0.3) right never: 0.2; (0.5, 0.9) right once: |0.7 − 0.5| = 0.2; mean 0.2."""
    confidence, right = np.array([0.9, 0.1, 0.5, 0.3]), np.array([True, False, False, False])
    assert expected_calibration_error(confidence, right, bins=2) == pytest.approx(0.2)


def test_confidences_that_are_frequencies_have_little_calibration_error() -> None:
    """Labels drawn from the confidences: the floor is about E|error of a bin's mean|, under 0.01 for 50,000 rows."""
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=50_000)
    right = rng.uniform(size=50_000) < confidence
    assert (expected_calibration_error(confidence, right) or 1) < 0.01


def test_rows_with_vectors_are_judged_with_their_own() -> None:
    rows = routes_rows(6) + base_rows()
    encoder = Meanings()
    classifier = fit_classifier(rows, encoder=encoder)
    vectors = encoder.encode([row.text for row in rows])
    found = [classifier.scores(row.text, vector) for row, vector in zip(rows, vectors, strict=True)]
    assert evaluate(classifier, rows, vectors) == evaluate_scores(found, [row.label for row in rows])


LABELS = st.sampled_from(["a", "b", "base", "oos"])
ROWS = st.lists(st.tuples(LABELS, st.sampled_from(["a", "b"]), st.floats(0, 1), st.floats(0, 1)), max_size=40)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_figures_are_shares_and_an_abstained_row_is_a_miss(rows: list[tuple[str, str, float, float]]) -> None:
    found = made(rows)
    assert all(value is None or 0 <= value <= 1 for key, value in found.items() if key != "n")
    if found["adapter_recall"] is not None:
        assert found["adapter_recall"] <= (found["coverage"] or 0)


@given(ROWS)
@settings(max_examples=60, deadline=None)
def test_auroc_is_the_share_of_ordered_pairs(rows: list[tuple[str, str, float, float]]) -> None:
    """Mann-Whitney by brute force; a tie counts one half."""
    in_scope = [score for label, _, _, score in rows if label in "ab"]
    negatives = [score for label, _, _, score in rows if label not in "ab"]
    pairs = [(n < s) + (n == s) / 2 for s in in_scope for n in negatives]
    assert made(rows)["oos_auroc"] == (pytest.approx(np.mean(pairs)) if pairs else None)
