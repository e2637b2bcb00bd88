"""The head: multinomial logistic regression over sparse features and an encoder's vector, and its temperature.

logits = x · W + v · D with x (features,) and W (features, labels), v (dimension,) of length 1 and D (dimension,
labels), which has no rows without an encoder; probabilities = softmax(logits / T). There is no intercept, so that
a text without a known term gets equal logits and speaks for no label.
Both are fitted as one regression over [x, α v], α being `ENCODER_SCALE`; D holds α times its weights. Without an
encoder the weights of linear support vector machines, one per label against all others with squared hinge loss, are
added to those of the regression: one matrix still, and fewer errors (on CLINC150 val 6.6 % instead of 6.9 %).
With a single label there is nothing to tell apart: W is then the unit mean of its examples and the logit is
the similarity of a text to it.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..errors import ClassifierInvalid
from .features import Floats, Indices, Scalars, Sparse

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression
    from sklearn.svm import LinearSVC

Labels = npt.NDArray[np.int64]

INVERSE_REGULARISATION = 30.0  # C; chosen on CLINC150 val and the suite's router_dev among 0.1 … 100
INVERSE_REGULARISATION_WITH_ENCODER = 10.0  # likewise, with α, on CLINC150 val among 3 … 30
HINGE_INVERSE_REGULARISATION = 1.0  # C of the support vector machines; among 0.1 … 10
HINGE_WEIGHT = 1.0  # among 0 … 10; with more, energy finds texts of no route less well
TOLERANCE = 1e-5  # the default of scikit-learn stops 1.5 points of accuracy too early with 150 labels
MAX_ITERATIONS = 2_000
ENCODER_SCALE = 2.0  # α


@dataclass(frozen=True, slots=True)
class Head:
    """`labels` in the order of the columns of `weights` (features, labels) and `dense` (dimension, labels)."""

    labels: tuple[str, ...]
    weights: Floats
    dense: Floats

    def logits(self, sparse: Sparse, vector: Floats | None = None) -> Scalars:
        """(labels,); `vector` (dimension,) is the encoder's, where there is one."""
        logits: Scalars = (sparse.values @ self.weights.take(sparse.indices, axis=0)).astype(np.float64)
        return logits if vector is None else logits + vector @ self.dense

    def weights_of(self, indices: Indices) -> Floats:
        """(indices, labels): the weights of some features."""
        return self.weights[indices]

    def without(self, label: str) -> Head:
        """The head of the other labels; itself where it does not have `label`."""
        kept = [at for at, one in enumerate(self.labels) if one != label]
        if len(kept) == len(self.labels):
            return self
        labels = tuple(self.labels[at] for at in kept)
        return Head(labels, np.ascontiguousarray(self.weights[:, kept]), np.ascontiguousarray(self.dense[:, kept]))


def log_sum_exp(values: Scalars) -> Scalars:
    """ln Σ exp over the last axis, without overflow."""
    # The reductions themselves: `max` and `sum` wrap them, for as long again where there are few values.
    top = np.maximum.reduce(values, axis=-1, keepdims=True)
    total: Scalars = np.log(np.add.reduce(np.exp(values - top), axis=-1)) + top[..., 0]
    return total


def stack(rows: Sequence[Sparse], size: int) -> csr_matrix:
    """The rows as one matrix (rows, size)."""
    from scipy.sparse import csr_matrix

    starts = np.cumsum([0, *(len(row.indices) for row in rows)])
    columns = np.concatenate([row.indices for row in rows])
    matrix = csr_matrix((np.concatenate([row.values for row in rows]), columns, starts), shape=(len(rows), size))
    matrix.sort_indices()
    return matrix


def fit_head(sparse: csr_matrix, vectors: Floats | None, labels: Sequence[str]) -> Head:
    """Fit on `sparse` (rows, features), `vectors` (rows, dimension) where there is an encoder, and one label a row.

    Raises `ClassifierInvalid` where it does not converge.
    """
    from scipy.sparse import csr_matrix, hstack

    matrix = sparse if vectors is None else hstack([sparse, csr_matrix(ENCODER_SCALE * vectors)], format="csr")
    names = tuple(sorted(set(labels)))
    if len(names) == 1:
        weights = _mean(matrix)
    elif vectors is None:
        regressed = _regress(matrix, labels, INVERSE_REGULARISATION)
        weights = regressed + np.float32(HINGE_WEIGHT) * _separate(matrix, labels)
    else:
        weights = _regress(matrix, labels, INVERSE_REGULARISATION_WITH_ENCODER)
    size = sparse.shape[1]
    return Head(names, weights[:size], np.float32(ENCODER_SCALE) * weights[size:])


def _mean(matrix: csr_matrix) -> Floats:
    """(features, 1), of length 1"""
    mean: Floats = np.asarray(matrix.mean(axis=0), dtype=np.float32).reshape(-1, 1)
    return mean / np.float32(max(float(np.linalg.norm(mean)), 1e-12))


def _regress(matrix: csr_matrix, labels: Sequence[str], inverse_regularisation: float) -> Floats:
    """(features, labels)"""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=inverse_regularisation, fit_intercept=False, tol=TOLERANCE, max_iter=MAX_ITERATIONS)
    return _weights(model, matrix, labels)


def _separate(matrix: csr_matrix, labels: Sequence[str]) -> Floats:
    """(features, labels)"""
    from sklearn.svm import LinearSVC

    model = LinearSVC(
        C=HINGE_INVERSE_REGULARISATION, fit_intercept=False, tol=1e-3, max_iter=MAX_ITERATIONS, random_state=0
    )
    return _weights(model, matrix, labels)


def _weights(model: LogisticRegression | LinearSVC, matrix: csr_matrix, labels: Sequence[str]) -> Floats:
    """(features, labels) of `model` once fitted."""
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # ships no types

    # One thread: the order of summation, and so the digest, must not depend on the machine's load.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("error", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # few-shot is no mistake
        try:
            model.fit(matrix, np.asarray(labels))
        except ConvergenceWarning as error:
            raise ClassifierInvalid(f"{type(model).__name__} did not converge in {MAX_ITERATIONS} steps") from error
    weights = model.coef_.T
    if weights.shape[1] == 1:  # scikit-learn keeps the log-odds of the second label alone
        weights = np.hstack([-weights / 2, weights / 2])
    return np.ascontiguousarray(weights, dtype=np.float32)


def fit_temperature(logits: Scalars, targets: Labels) -> float:
    """The T in [0.05, 20] with the least negative log-likelihood of `targets` under softmax(logits / T).

    One further row is assumed that could be any label, so that rows without a single error do not end in
    certainty. 1 where there is nothing to learn from. Source: Guo et al. 2017, "On Calibration of Modern
    Neural Networks"; the assumed row after Platt 1999.
    """
    from scipy.optimize import minimize_scalar

    if not len(targets) or logits.shape[1] == 1:
        return 1.0

    def loss(log_temperature: float) -> float:
        scaled = logits / np.exp(log_temperature)
        log_shares = scaled - log_sum_exp(scaled)[:, None]
        own = log_shares[np.arange(len(targets)), targets]
        return -float(own.sum() + log_shares.mean())

    found = minimize_scalar(loss, bounds=(np.log(0.05), np.log(20.0)), method="bounded")
    return float(np.exp(found.x))
