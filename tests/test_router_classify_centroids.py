"""The cheaper head: its numbers, what it loses against the regression, and its way to disk and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from scipy.sparse import csr_matrix

from adapters.rows import LabelledText
from router.classify import centroids, fit, pruned_head
from router.classify.artifact import digest_of, save_classifier
from router.classify.centroids import fit_centroids
from router.classify.evaluate import evaluate
from router.classify.features import Sparse
from router.classify.fit import FitWeights, fit_classifier
from router.classify.head import ENCODER_SCALE, Head, fit_head
from router.classify.loader import load_classifier
from router.classify.pruned_head import PrunedHead
from router.errors import ClassifierInvalid
from tests.classifier_rows import base_rows, routes_rows

LABELS = ["a", "a", "b", "b", "b", "c"]


def some_rows(features: int = 40) -> npt.NDArray[np.float32]:
    """(6, features), a third of it not 0"""
    random = np.random.default_rng(0)
    return (random.random((6, features)) * (random.random((6, features)) < 0.33)).astype(np.float32)


def sparse_of(row: npt.NDArray[np.float32]) -> Sparse:
    at = np.flatnonzero(row)
    return Sparse(at.astype(np.int64), row[at])


def test_weights_are_the_damped_unit_means_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written out with dense arrays; float32 sums in another order, so to six digits."""
    monkeypatch.setattr(centroids, "REFINED_CELLS", 0)
    rows = some_rows()
    head = fit_centroids(csr_matrix(rows), None, LABELS)
    assert head.labels == ("a", "b", "c")
    for at, own in enumerate((rows[:2], rows[2:5], rows[5:])):
        damped = np.log1p(own.mean(axis=0) / 0.02)
        expected = 10 * damped / np.linalg.norm(damped)
        assert head.weights_of(np.arange(40))[:, at] == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("shared", [0.0, 0.5, 1.0])
def test_logits_are_the_product_with_the_full_weights(shared: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever features are read as dense rows: all that any label keeps, those of two of three labels, none."""
    monkeypatch.setattr(pruned_head, "SHARED", shared)
    rows, random = some_rows(), np.random.default_rng(1)
    vectors = random.random((6, 5)).astype(np.float32)
    head = fit_centroids(csr_matrix(rows), vectors, LABELS)
    assert (len(head.table) > 0) == (shared < 1)
    assert (head.rows[np.diff(head.starts) == 1] < 0).all() == (shared > 0)
    for row, vector in zip(rows, vectors, strict=True):
        expected = row @ head.weights_of(np.arange(40)) + vector @ head.dense
        assert head.logits(sparse_of(row), vector) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert head.logits(Sparse(np.array([], dtype=np.int64), np.array([], dtype=np.float32))).tolist() == [0, 0, 0]


def test_a_step_is_one_of_softmax_regression_with_each_class_divided_by_its_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The gradient written out with dense arrays; errors under a hundredth are left out here too."""
    random = np.random.default_rng(1)
    rows, vectors = some_rows(), random.random((6, 5)).astype(np.float32)
    inputs = np.hstack([rows, ENCODER_SCALE * vectors])

    def weights(steps: int) -> npt.NDArray[np.float64]:
        monkeypatch.setattr(centroids, "STEPS", steps)
        head = fit_centroids(csr_matrix(rows), vectors, LABELS)
        return np.vstack([head.weights_of(np.arange(40)), head.dense / ENCODER_SCALE]).T / 10

    before = weights(0)
    logits = 10 * inputs @ before.T
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    own = np.array([[label == one for one in "abc"] for label in LABELS])
    errors = np.where(np.abs(shares - own) > 0.01, shares - own, 0)
    expected = before - (errors / own.sum(axis=0)).T @ inputs
    assert weights(1) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("gone", ["a", "b", "c", "d"])
@pytest.mark.parametrize("fit_weights", [fit_centroids, fit_head])
def test_a_head_without_a_label_says_the_same_of_the_others(fit_weights: FitWeights, gone: str) -> None:
    rows, vectors = some_rows(), np.random.default_rng(1).random((6, 5)).astype(np.float32)
    head = fit_weights(csr_matrix(rows), vectors, LABELS)
    kept = [at for at, label in enumerate(head.labels) if label != gone]
    less = head.without(gone)
    assert less.labels == tuple(head.labels[at] for at in kept)
    for row, vector in zip(rows, vectors, strict=True):
        whole = head.logits(sparse_of(row), vector)
        assert less.logits(sparse_of(row), vector) == pytest.approx(whole[kept], rel=1e-5, abs=1e-5)


def test_each_route_keeps_its_largest_weights_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centroids, "REFINED_CELLS", 0)
    whole = fit_centroids(csr_matrix(some_rows()), None, LABELS).weights_of(np.arange(40))
    monkeypatch.setattr(centroids, "WEIGHTS_PER_ROUTE", 5)
    pruned = fit_centroids(csr_matrix(some_rows()), None, LABELS).weights_of(np.arange(40))
    assert (np.count_nonzero(pruned, axis=0) == 5).all()
    for column in range(3):
        assert set(np.flatnonzero(pruned[:, column])) == set(np.argsort(-whole[:, column])[:5])


def test_with_many_routes_terms_that_most_of_them_have_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(centroids, "MANY_ROUTES", 2)
    rows = some_rows()
    weights = fit_centroids(csr_matrix(rows), None, LABELS).weights_of(np.arange(40))
    routes_with = sum((own != 0).any(axis=0).astype(int) for own in (rows[:2], rows[2:5], rows[5:]))
    assert ((np.count_nonzero(weights, axis=1) == 0) == (routes_with != 1)).all()


def test_on_small_routes_it_decides_as_the_regression_does() -> None:
    rows, fresh = routes_rows(20) + base_rows(), routes_rows(20, seed=5)
    found = evaluate(fit_classifier(rows, coverage=0.9, head="centroids"), fresh)
    assert found.adapter_recall is not None
    assert found.adapter_recall >= 0.9


def test_auto_takes_it_for_many_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = routes_rows(6)
    assert isinstance(fit_classifier(rows).head, Head)
    monkeypatch.setattr(fit, "MANY_LABELS", 2)
    assert isinstance(fit_classifier(rows).head, PrunedHead)
    assert isinstance(fit_classifier(rows, head="logistic").head, Head)


def test_saved_and_loaded_it_says_the_same(tmp_path: Path) -> None:
    rows = routes_rows(8)
    fitted = fit_classifier(rows, head="centroids")
    save_classifier(fitted, tmp_path / "saved")
    loaded = load_classifier(tmp_path / "saved", digest=fitted.digest)
    assert [loaded.scores(row.text) for row in rows] == [fitted.scores(row.text) for row in rows]
    assert loaded.explain(rows[0].text) == fitted.explain(rows[0].text)
    assert isinstance(loaded.head, PrunedHead)
    assert not loaded.head.values.flags.writeable


Arrays = dict[str, npt.NDArray[np.generic]]
Spoil = Callable[[PrunedHead], Arrays]


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda head: {"columns": head.columns + 1}, "names labels beyond"),
        (lambda head: {"columns": head.columns - 1}, "names labels beyond"),
        (lambda head: {"starts": head.starts[::-1].copy()}, "does not ascend"),
        (lambda head: {"starts": head.starts[:-1]}, r"starts.npy is .*shape.*expected .*shape"),
        (lambda head: {"values": head.values * np.nan}, "NaN"),
    ],
)
def test_spoiled_weights_are_refused_by_name(tmp_path: Path, spoil: Spoil, problem: str) -> None:
    fitted = fit_classifier(routes_rows(6), head="centroids")
    assert isinstance(fitted.head, PrunedHead)
    for name, array in spoil(fitted.head).items():  # past the constructor, which no such numbers would get through
        object.__setattr__(fitted.head, name, array)
    save_classifier(replace(fitted, digest=digest_of(fitted)), tmp_path / "saved")
    with pytest.raises(ClassifierInvalid, match=problem):
        load_classifier(tmp_path / "saved")


def test_of_many_rows_and_labels_a_part_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    from router.classify import calibration

    monkeypatch.setattr(calibration, "MANY_LOGITS", 3 * 10)
    monkeypatch.setattr(calibration, "ENOUGH_ROWS", 4)
    rows = routes_rows(30)
    fresh = [LabelledText(row.text, row.label) for row in routes_rows(30, seed=9)]
    fitted = fit_classifier(rows, calibration=fresh, head="centroids")
    assert fitted.summary["calibration_rows"] == 10
