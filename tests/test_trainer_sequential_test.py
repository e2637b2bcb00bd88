"""The false-alarm rate over all looks, and paired tests against closed forms and brute force."""

from __future__ import annotations

import itertools
import math
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest, norm

from trainer.monitoring.sequential_test import Spending, look_alpha, paired_drop, spent

SPENDINGS: tuple[Spending, ...] = get_args(Spending)
ALPHA = 0.05


@given(st.sampled_from(SPENDINGS), st.floats(0.001, 0.2), st.integers(1, 60))
def test_the_levels_of_all_looks_add_up_to_alpha(spending: Spending, alpha: float, looks: int) -> None:
    levels = [look_alpha(spending, alpha, look, looks) for look in range(1, looks + 1)]
    assert min(levels) >= 0
    assert math.fsum(levels) == pytest.approx(alpha, rel=1e-9)


def test_spending_is_that_of_lan_and_demets() -> None:
    """α = 0.05 at half the looks: 0.05 ln(1 + 0.5 (e − 1)) = 0.03101; 2 − 2 Φ(1.96 / √0.5) = 0.00557 (their table)."""
    assert spent("pocock", 0.05, 0.5) == pytest.approx(0.05 * math.log(1 + 0.5 * (math.e - 1)), abs=1e-12)
    assert spent("pocock", 0.05, 0.5) == pytest.approx(0.03101, abs=5e-6)
    assert spent("obrien-fleming", 0.05, 0.5) == pytest.approx(2 * (1 - norm.cdf(1.959964 / math.sqrt(0.5))), abs=1e-7)
    assert spent("obrien-fleming", 0.05, 0.5) == pytest.approx(0.00557, abs=5e-6)
    assert [spent(one, 0.05, 0.0) for one in SPENDINGS] == [0, 0]


@pytest.mark.parametrize("look", [0, 5])
def test_a_look_that_was_not_planned_has_no_level(look: int) -> None:
    with pytest.raises(ValueError, match="of 4 planned"):
        look_alpha("pocock", ALPHA, look, 4)


def false_alarms(spending: Spending, p_values: NDArray[np.float64]) -> float:
    """Share of rows (one monitor each) in which any look's p-value reaches that look's level."""
    looks = p_values.shape[1]
    levels = np.array([look_alpha(spending, ALPHA, look, looks) for look in range(1, looks + 1)])
    return float((p_values <= levels).any(axis=1).mean())


@pytest.mark.parametrize("spending", SPENDINGS)
def test_where_nothing_changed_a_monitor_raises_a_false_alarm_at_most_as_often_as_alpha(spending: Spending) -> None:
    """4,000 monitors of 8 looks at 200 items whose true accuracy is 0.8 before and now, with fixed reference scores.

    The reference is drawn once a monitor, so its looks are dependent. At most α + 3 standard errors.
    """
    draw = np.random.default_rng(20)
    monitors, looks, items = 4000, 8, 200
    before = draw.random((monitors, 1, items)) < 0.8
    now = draw.random((monitors, looks, items)) < 0.8
    worse = (before & ~now).sum(axis=2)
    better = (~before & now).sum(axis=2)
    table = {pair: binomtest(pair[0], sum(pair), alternative="greater").pvalue for pair in set(_pairs(worse, better))}
    p_values = np.array([table[pair] for pair in _pairs(worse, better)]).reshape(monitors, looks)
    rate = false_alarms(spending, p_values)
    assert rate <= ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / monitors)
    unspent = float((p_values <= ALPHA).any(axis=1).mean())
    assert unspent > 2 * ALPHA, "testing each look at α must raise too many, or this proves nothing"


def _pairs(worse: NDArray[np.int_], better: NDArray[np.int_]) -> list[tuple[int, int]]:
    return list(zip(worse.ravel().tolist(), better.ravel().tolist(), strict=True))


@pytest.mark.parametrize("spending", SPENDINGS)
def test_independent_looks_spend_all_of_alpha_and_equal_ones_only_that_of_their_largest(spending: Spending) -> None:
    """Closed forms for uniform p-values: 1 − Π(1 − α_k) where looks are independent, max α_k where they are one."""
    draw = np.random.default_rng(21)
    monitors, looks = 40_000, 6
    levels = [look_alpha(spending, ALPHA, look, looks) for look in range(1, looks + 1)]
    independent = 1 - math.prod(1 - level for level in levels)
    for expected, p_values in (
        (independent, draw.random((monitors, looks))),
        (max(levels), draw.random((monitors, 1)).repeat(looks, axis=1)),
    ):
        error = math.sqrt(expected * (1 - expected) / monitors)
        assert false_alarms(spending, p_values) == pytest.approx(expected, abs=3 * error)


def test_scores_of_0_and_1_are_tested_as_mcnemar_does() -> None:
    """8 of 10 discordant pairs fell: P(X ≥ 8 | n = 10, ½) = (45 + 10 + 1) / 1024; the pairs that agree say nothing."""
    before = [1.0] * 8 + [0.0] * 2 + [1.0] * 90
    now = [0.0] * 8 + [1.0] * 2 + [1.0] * 90
    found = paired_drop(before, now)
    assert (found.pairs, found.worse, found.better) == (100, 8, 2)
    assert found.size == pytest.approx(0.06, abs=1e-12)
    assert found.p == pytest.approx(56 / 1024, abs=1e-12)


def test_graded_scores_are_tested_over_all_sign_flips() -> None:
    """Brute force: the share of the 2⁸ sign patterns whose sum is at least the one seen."""
    fell = np.array([0.5, 0.3, -0.2, 0.7, 0.1, 0.25, -0.4, 0.6])
    signs = np.array(list(itertools.product((-1, 1), repeat=len(fell))))
    expected = float(((signs * np.abs(fell)).sum(axis=1) >= fell.sum() - 1e-12).mean())
    found = paired_drop(fell.clip(min=0).tolist(), (-fell).clip(min=0).tolist())
    assert found.p == pytest.approx(expected, abs=1e-12)


def test_sign_flips_drawn_at_random_agree_with_the_exact_binomial() -> None:
    """Differences of one size are a binomial in disguise: 26 of 40 fell; within 4 standard errors of 19,999 draws."""
    before = [0.5] * 26 + [0.0] * 14
    now = [0.0] * 26 + [0.5] * 14
    exact = binomtest(26, 40, alternative="greater").pvalue
    found = paired_drop(before, now)
    assert found.p == pytest.approx(exact, abs=4 * math.sqrt(exact * (1 - exact) / 19_999))
    assert found == paired_drop(before, now), "the same scores must give the same p-value"


@pytest.mark.parametrize("scores", [[], [1.0, 0.0, 1.0], [0.25, 0.5]])
def test_equal_scores_are_no_evidence_of_a_drop(scores: list[float]) -> None:
    found = paired_drop(scores, scores)
    assert (found.size, found.p, found.worse, found.better) == (0, 1, 0, 0)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40))
def test_a_rise_is_never_called_a_drop(pairs: list[tuple[int, int]]) -> None:
    found = paired_drop([float(a) for a, _ in pairs], [float(b) for _, b in pairs])
    if found.better >= found.worse:
        assert found.p >= 0.5
