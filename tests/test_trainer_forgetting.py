"""The measures of a sequence against R matrices worked by hand, and what holds for every R."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.sequences.forgetting import Matrix, measure, routing_regret
from trainer.sequences.seeds import holm, t_interval

# Three tasks; task 1 peaks after stage 2, not when it is learned.
HAND = [
    [0.10, 0.00, 0.20],
    [0.80, 0.10, 0.20],
    [0.90, 0.70, 0.30],
    [0.50, 0.60, 0.90],
]


def test_the_measures_of_a_hand_worked_matrix() -> None:
    found = measure(HAND, "higher")
    assert found.average == pytest.approx((0.5 + 0.6 + 0.9) / 3)
    assert found.learned == pytest.approx((0.8 + 0.7 + 0.9) / 3)
    assert found.backward_transfer == pytest.approx(((0.5 - 0.8) + (0.6 - 0.7)) / 2)  # −0.2
    assert found.forgetting == pytest.approx(((0.9 - 0.5) + (0.7 - 0.6)) / 2)  # 0.25: task 1 from its peak
    assert found.forward_transfer == pytest.approx(((0.1 - 0.0) + (0.3 - 0.2)) / 2)  # 0.1
    assert found.retention == pytest.approx((0.5 + 0.6) / (0.8 + 0.7))
    assert found.retained_gain == pytest.approx((1.1 - 0.1) / (1.5 - 0.1))


def test_a_score_of_which_less_is_better_keeps_the_meaning_of_every_sign() -> None:
    nll = [[3.0, 4.0], [1.0, 3.5], [2.0, 0.5]]  # by hand: task 1 rises by 1 nat, task 2 began 0.5 below the base
    found = measure(nll, "lower")
    assert found.average == pytest.approx(1.25)
    assert found.learned == pytest.approx(0.75)
    assert found.backward_transfer == pytest.approx(-1.0)
    assert found.forgetting == pytest.approx(1.0)
    assert found.forward_transfer == pytest.approx(0.5)
    assert found.retention == pytest.approx(0.5)
    assert found.retained_gain == pytest.approx((3.0 - 2.0) / (3.0 - 1.0))


def test_joint_training_has_an_average_and_nothing_else() -> None:
    found = measure([[0.1, 0.2], None, [0.8, 0.6]], "higher")
    assert found.average == pytest.approx(0.7)
    assert {value for name, value in found.values.items() if name != "average"} == {None}


def test_one_task_has_nothing_to_forget() -> None:
    found = measure([[0.1], [0.9]], "higher")
    assert (found.average, found.learned) == (0.9, 0.9)
    assert {found.backward_transfer, found.forgetting, found.forward_transfer, found.retention} == {None}


def test_retention_of_nothing_learned_is_no_number() -> None:
    assert measure([[0.0, 0.0], [0.0, 0.0], [0.0, 0.5]], "higher").retention is None


@pytest.mark.parametrize("matrix", [[], [[0.1]], [[0.1, 0.2], [0.1, 0.2]], [[0.1], None], [None, [0.1]]])
def test_anything_but_base_and_one_row_per_task_is_refused(matrix: Matrix) -> None:
    with pytest.raises(ValueError, match="R has"):
        measure(matrix, "higher")


def test_routing_regret_is_what_routing_loses_in_either_direction() -> None:
    oracle, routed = [[0.0, 0.0], None, [0.8, 0.6]], [[0.0, 0.0], None, [0.7, 0.6]]
    assert routing_regret(oracle, routed, "higher") == pytest.approx(0.05)
    assert routing_regret(oracle, routed, "lower") == pytest.approx(-0.05)


@st.composite
def matrices(draw: st.DrawFn) -> list[list[float]]:
    tasks = draw(st.integers(2, 6))
    score = st.integers(10, 1000).map(lambda thousandths: thousandths / 1000)  # no two apart by a rounding
    row = st.lists(score, min_size=tasks, max_size=tasks)
    return draw(st.lists(row, min_size=tasks + 1, max_size=tasks + 1))


@given(matrices())
def test_backward_transfer_is_minus_forgetting_only_where_each_task_peaks_when_learned(
    matrix: list[list[float]],
) -> None:
    found, tasks = measure(matrix, "higher"), len(matrix[0])
    assert found.forgetting is not None
    assert found.backward_transfer is not None
    assert found.forgetting >= -found.backward_transfer - 1e-12
    peaks_when_learned = all(
        matrix[task + 1][task] >= max(matrix[stage][task] for stage in range(task + 1, tasks))
        for task in range(tasks - 1)
    )
    agree = abs(found.forgetting + found.backward_transfer) < 1e-12
    assert agree or not peaks_when_learned
    assert peaks_when_learned or found.forgetting > -found.backward_transfer


@given(matrices())
def test_negating_a_score_and_its_direction_changes_no_difference(matrix: list[list[float]]) -> None:
    found, mirrored = measure(matrix, "higher"), measure([[-value for value in row] for row in matrix], "lower")
    assert mirrored.backward_transfer == pytest.approx(found.backward_transfer)
    assert mirrored.forgetting == pytest.approx(found.forgetting)
    assert mirrored.forward_transfer == pytest.approx(found.forward_transfer)
    assert mirrored.average == pytest.approx(-found.average)


@given(matrices())
def test_a_base_that_never_changes_transfers_and_forgets_nothing(matrix: list[list[float]]) -> None:
    found = measure([matrix[0]] * len(matrix), "higher")
    assert (found.backward_transfer, found.forgetting, found.forward_transfer) == (0.0, 0.0, 0.0)
    assert found.retention == pytest.approx(1.0)


def test_an_interval_over_three_seeds_has_students_two_degrees_of_freedom() -> None:
    found = t_interval([0.1, 0.2, 0.3])  # t(0.975, 2) = 4.30265 (any table), s/√n = 0.1/√3
    assert found.lower == pytest.approx(0.2 - 4.30265 * 0.1 / 3**0.5, abs=1e-5)
    assert found.upper == pytest.approx(0.2 + 4.30265 * 0.1 / 3**0.5, abs=1e-5)
    assert found.p == pytest.approx(0.0742, abs=1e-4)  # t = 3.4641 at 2 degrees: 1 − t/√(t² + 2)


def test_one_seed_supports_no_interval() -> None:
    assert t_interval([0.4]).lower is None


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
