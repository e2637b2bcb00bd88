"""Confidence: a known temperature and a known exponent are found again; few rows leave plain temperature scaling."""

from __future__ import annotations

import math

import numpy as np
import pytest

from router.classify.confidence import Confidence, fit_confidence, known_share
from router.classify.features import Sparse


def drawn(rows: int, temperature: float, exponent: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits, shares known, and labels drawn from softmax(z / (T k^e)) by the Gumbel-max trick."""
    rng = np.random.default_rng(0)
    logits, known = rng.normal(scale=2, size=(rows, 4)), rng.uniform(0.2, 1, size=rows)
    scaled = Confidence(temperature, exponent).scaled(logits, known[:, None])
    return logits, known, np.argmax(scaled + rng.gumbel(size=logits.shape), axis=1)


def test_temperature_and_exponent_are_found_again() -> None:
    """Within the noise of 20,000 rows; asking for both at once leaves each less sharp than a temperature alone."""
    found = fit_confidence(*drawn(20_000, 1.5, 1.2))
    assert found.temperature == pytest.approx(1.5, rel=0.06)
    assert found.exponent == pytest.approx(1.2, abs=0.1)


def test_where_unknown_terms_say_nothing_the_exponent_is_about_0() -> None:
    assert fit_confidence(*drawn(20_000, 1.0, 0.0)).exponent < 0.05


def test_without_rows_or_without_a_choice_probabilities_are_the_plain_softmax() -> None:
    nothing = np.zeros((0, 3)), np.zeros(0), np.zeros(0, dtype=np.int64)
    single = np.zeros((5, 1)), np.ones(5), np.zeros(5, dtype=np.int64)
    assert fit_confidence(*nothing) == fit_confidence(*single) == Confidence(1.0, 0.0)


def test_of_a_text_known_in_full_the_share_is_1_and_of_an_unknown_one_the_least() -> None:
    """By hand: two blocks of length 1 are √2 long; half as long is half known."""
    both = np.array([0.6, 0.8, 1.0], dtype=np.float32)
    columns = np.arange(3)
    assert known_share(Sparse(columns, both)) == pytest.approx(1.0)
    assert known_share(Sparse(columns, both / np.float32(2))) == pytest.approx(0.5)
    assert known_share(Sparse(columns[:0], both[:0])) == 0.1


def test_a_text_half_known_is_scaled_by_its_share_to_the_exponent() -> None:
    """By hand: T = 2, e = 2, k = 1/2: 2 · 1/4 = 1/2, so logits double."""
    scaled = Confidence(2.0, 2.0).scaled(np.array([1.0, math.pi]), 0.5)
    np.testing.assert_allclose(scaled, [2.0, 2 * math.pi])
