"""Abstention: scores by hand, thresholds by hand, coverage on exchangeable data, temperature."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.classify.abstain import (
    DEFAULT_SCORE,
    NOTHING_KNOWN,
    ScoreName,
    choose_score,
    conformal_threshold,
    decision_scores,
    separating_threshold,
)
from router.classify.calibration import NEGATIVE, Calibration, learn_abstention
from router.classify.head import fit_temperature, log_sum_exp

# Labels a, base, c; T = 2. Row 1: e^(4/2) = e², e⁰ = 1, e^(2/2) = e.
LOGITS = np.array([[4.0, 0.0, 2.0], [1.0, 3.0, -1.0]])
E = math.e


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("probability", [E**2 / (E**2 + 1 + E), E**0.5 / (E**0.5 + E**1.5 + E**-0.5)]),
        ("margin", [4 - 2, 1 - 3]),
        ("energy", [2 * math.log(E**2 + E) - 0, 2 * math.log(E**0.5 + E**-0.5) - 3]),
        ("energy_half_base", [2 * math.log(E**2 + E) - 0, 2 * math.log(E**0.5 + E**-0.5) - 3 / 2]),
        ("energy_quarter_base", [2 * math.log(E**2 + E) - 0, 2 * math.log(E**0.5 + E**-0.5) - 3 / 4]),
        ("energy_of_routes", [2 * math.log(E**2 + E) - 0, 2 * math.log(E**0.5 + E**-0.5)]),
    ],
)
def test_scores_are_their_formulas_by_hand(name: ScoreName, expected: list[float]) -> None:
    np.testing.assert_allclose(decision_scores(name, LOGITS, 2.0, 1), expected, rtol=1e-12)


def test_scores_without_a_base_class_by_hand() -> None:
    logits = np.array([[4.0, 2.0]])
    assert decision_scores("margin", logits, 1.0, None) == pytest.approx([2.0])
    assert decision_scores("energy", logits, 1.0, None) == pytest.approx([math.log(E**4 + E**2)])


def test_a_single_label_scores_by_its_logit() -> None:
    """Energy of one route is T · ln exp(z / T) = z."""
    for name in ("margin", "energy"):
        assert decision_scores(name, np.array([[0.3]]), 2.0, None) == pytest.approx([0.3])


@pytest.mark.parametrize(
    ("rows", "coverage", "expected"),
    [
        (99, 0.99, 1.0),  # ⌊0.01 · 100⌋ = 1: the smallest
        (98, 0.99, None),  # ⌊0.99⌋ = 0: nothing may be rejected
        (19, 0.95, 1.0),  # SCIENCE §8: with fewer than 19 it would never abstain
        (18, 0.95, None),
        (199, 0.95, 10.0),
        (9, 0.9, 1.0),  # floating point: (1 − 0.9) · 10 is 0.99…98
    ],
)
def test_threshold_is_the_conformal_order_statistic(rows: int, coverage: float, expected: float | None) -> None:
    assert conformal_threshold(np.arange(rows, 0, -1.0), coverage) == expected


def test_coverage_holds_on_exchangeable_data() -> None:
    """Expected share kept: 1 − ⌊α(n + 1)⌋/(n + 1) = 0.95; the mean of 2,000 draws has a standard error of 0.0011."""
    rng = np.random.default_rng(0)
    kept = [
        np.mean(rng.gumbel(size=50) >= (conformal_threshold(rng.gumbel(size=19), 0.95) or -np.inf)) for _ in range(2000)
    ]
    assert np.mean(kept) == pytest.approx(0.95, abs=4 * np.std(kept) / math.sqrt(len(kept)))


def test_separating_threshold_keeps_and_rejects_most() -> None:
    """By hand: at 3, two of three positives stay and all three negatives go: 2/3 + 1; at 2: 1 + 1/3; at 5: 1/3 + 1."""
    assert separating_threshold(np.array([2.0, 3.0, 5.0]), np.array([1.0, 2.0, 2.5])) == 3.0


@settings(deadline=None)
@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30), st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_separating_threshold_is_the_best_by_brute_force(positives: list[float], negatives: list[float]) -> None:
    def gain(threshold: float) -> float:
        return float(np.mean(np.array(positives) >= threshold) + np.mean(np.array(negatives) < threshold))

    found = separating_threshold(np.array(positives), np.array(negatives))
    assert gain(found) == pytest.approx(max(gain(candidate) for candidate in positives + negatives))


def test_the_score_that_tells_negatives_best_is_chosen() -> None:
    """Routes a, b. In scope (3, 3): no margin, high energy; negatives (1, 0): some margin, low energy."""
    logits = np.array([[3.0, 3.0]] * 5 + [[1.0, 0.0]] * 5)
    negative = np.array([False] * 5 + [True] * 5)
    assert choose_score(logits, negative, 1.0, None) == "energy"


def test_a_base_class_that_drowns_the_routes_is_taken_off_in_half() -> None:
    """Routes a, b, and the base. In scope (3, 3, 3): ln 2e³ − 3 = 0.69 and with half of it 2.19; negatives (1, 0, 0):
    ln(e + 1) = 1.31. Probability (1/3 against 0.58) and margin (0 against 1) have it the wrong way, too.
    """
    logits = np.array([[3.0, 3.0, 3.0]] * 5 + [[1.0, 0.0, 0.0]] * 5)
    negative = np.array([False] * 5 + [True] * 5)
    assert choose_score(logits, negative, 1.0, 2) == "energy_half_base"


@pytest.mark.parametrize("negative", [True, False])
def test_without_both_kinds_of_rows_the_default_score_is_taken(negative: bool) -> None:
    assert choose_score(LOGITS, np.full(2, negative), 1.0, None) == DEFAULT_SCORE


def test_too_few_rows_for_the_coverage_are_said_to_be_too_few() -> None:
    """Three in-scope rows cannot show 99 %: the smallest of their energies ln(e^z + e⁰) is taken."""
    logits = np.array([[3.0, 0.0], [2.0, 0.0], [0.0, 4.0]])
    learned = learn_abstention(Calibration(logits, np.array([0, 0, 1]), np.ones(3), None), 0.99)
    scaled = logits[1] / learned.temperature
    assert learned.threshold == pytest.approx(learned.temperature * float(log_sum_exp(scaled)))
    assert not learned.holds


def test_strangers_place_the_threshold_where_rows_are_too_few_and_nothing_else() -> None:
    """In-scope margins 1, 3 and 4, strangers' up to 2: 3 keeps two of three and rejects all, 1 would keep every one."""
    logits, targets = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0]]), np.array([0, 0, 1])
    rows = Calibration(logits, targets, np.ones(3), None)
    made = np.array([[margin, 0.0] for margin in (0.5, 1.5, 2.0, 2.0)])
    strangers = Calibration(made, np.full(4, NEGATIVE), np.ones(4), None)
    alone, beside = learn_abstention(rows, 0.99), learn_abstention(rows, 0.99, strangers)
    scores = decision_scores(beside.score_name, logits, beside.temperature, None)
    assert alone.threshold == pytest.approx(scores[0])
    assert beside.threshold == pytest.approx(scores[1])
    assert (alone.temperature, alone.score_name) == (beside.temperature, beside.score_name)
    assert learn_abstention(rows, 0.5, strangers) == learn_abstention(rows, 0.5)


def test_a_text_of_which_too_little_is_known_never_reaches_a_threshold() -> None:
    """Two of four in-scope rows are silent: the smallest score of the others holds, however high the silent ones'."""
    logits, targets = np.array([[9.0, 0.0], [9.0, 0.0], [1.0, 0.0], [2.0, 0.0]]), np.zeros(4, dtype=np.int64)
    rows = Calibration(logits, targets, np.array([0.2, 0.3, 0.9, 0.9]), None)
    learned = learn_abstention(rows, 0.6)
    scores = decision_scores(learned.score_name, logits, learned.temperature, None)
    assert learned.threshold == pytest.approx(scores[2])
    assert rows.scores(learned.score_name, learned.temperature)[0] == NOTHING_KNOWN
    encoded = Calibration(logits, targets, rows.known, None, by_words=False)
    assert not encoded.silent.any()


def test_where_the_other_routes_have_too_few_rows_the_pooled_threshold_holds() -> None:
    """200 rows of label 0 have their own; for 99 % the other 20 are too few, ⌊0.01 · 221⌋ = the 2nd smallest of all."""
    many, rest = 1 + np.arange(200) / 1000, np.arange(1, 21) / 1000
    logits = np.vstack([np.stack([many, 0 * many], axis=1), np.stack([0 * rest, rest], axis=1)])
    learned = learn_abstention(Calibration(logits, np.array([0] * 200 + [1] * 20), np.ones(220), None), 0.99)
    scores = decision_scores(learned.score_name, logits, learned.temperature, None)
    assert learned.holds
    assert learned.threshold == pytest.approx(np.sort(scores)[1])


def test_a_route_with_rows_enough_has_its_own_threshold_and_the_others_share_one() -> None:
    """By hand at 90 %: ⌊0.1 · 201⌋ = 20th smallest of the 200 of label 0, ⌊0.1 · 100⌋ = 10th of the rest's 99.

    Margins are 1 … 200 thousandths for label 0 and 1,001 … 1,099 thousandths for label 1; energy rises with them.
    """
    many, rest = np.arange(1, 201) / 1000, 1 + np.arange(1, 100) / 1000
    logits = np.vstack([np.stack([many, 0 * many], axis=1), np.stack([0 * rest, rest], axis=1)])
    targets = np.array([0] * 200 + [1] * 99)
    learned = learn_abstention(Calibration(logits, targets, np.ones(299), None), 0.9)
    scores = decision_scores(learned.score_name, logits, learned.temperature, None)
    assert learned.own_thresholds == {0: pytest.approx(scores[19])}
    assert learned.threshold == pytest.approx(scores[200 + 9])


def test_negatives_without_a_base_class_do_not_touch_the_temperature() -> None:
    logits, targets = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 2.0]]), np.array([0, 0, 1])
    more = Calibration(np.vstack([logits, [[9.0, 0.0]]]), np.append(targets, NEGATIVE), np.ones(4), None)
    alone = learn_abstention(Calibration(logits, targets, np.ones(3), None), 0.9)
    assert learn_abstention(more, 0.9).temperature == alone.temperature


def test_temperature_undoes_a_known_scaling() -> None:
    """Labels drawn from softmax(z): fitted on 3 z the temperature is 3, within the noise of 20,000 rows."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=2, size=(20_000, 4))
    targets = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)  # Gumbel-max draws from softmax
    assert fit_temperature(3 * logits, targets) == pytest.approx(3.0, rel=0.03)


def test_rows_without_an_error_do_not_end_in_certainty() -> None:
    """By hand for one row z = (1, 0), right, and one that could be either: 2 rows, 1.5 for the first label.

    Its share must be 3/4, so 1/T = ln 3.
    """
    assert fit_temperature(np.array([[1.0, 0.0]]), np.array([0])) == pytest.approx(1 / math.log(3), rel=1e-3)


def test_temperature_without_rows_is_one() -> None:
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)) == 1.0
