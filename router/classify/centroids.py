"""The cheaper head, for thousands of routes: class means with damped weights, pruned and stored sparsely.

Per route c with mean features m_c (TF-IDF, of its rows): w_c = unit(ln(1 + m_c / 0.02)), its 1,024 largest weights
kept; logits = 10 (x · w_c + α v · d_c), d_c the unit mean of the encoder's vectors, where there is one. The logarithm
keeps a term that every row repeats from drowning the rest, as in naive Bayes (Rennie et al. 2003, "Tackling the Poor
Assumptions of Naive Bayes Text Classifiers"). Up to `REFINED_CELLS` rows × routes three steps of softmax regression
follow, each class's gradient divided by its rows: they find most of what a full regression finds. With more than
`MANY_ROUTES` routes a decision would spend nearly all its time on terms that most routes have: those are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from .features import Floats, Scalars
from .head import ENCODER_SCALE, Labels
from .pruned_head import PrunedHead

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

DAMPING = 0.02  # chosen on CLINC150 val, like all below
WEIGHTS_PER_ROUTE = 1_024
MANY_ROUTES = 1_000  # beyond, terms that more than half of the routes have are left out
COMMON = 0.5
SCALE = 10.0
STEPS = 3
REFINED_CELLS = 20_000_000
NEGLIGIBLE = 0.01  # a smaller error of a probability moves nothing
CHUNK = 1_000


def fit_centroids(sparse: csr_matrix, vectors: Floats | None, labels: Sequence[str]) -> PrunedHead:
    """As `fit_head`: `sparse` (rows, features), `vectors` (rows, dimension) or `None`, one label a row."""
    names, targets = np.unique(np.array(labels), return_inverse=True)
    if len(names) > MANY_ROUTES:
        sparse = _without_common(sparse, targets, len(names))
    rows = np.arange(len(targets))
    members = _divided(_picks(targets, rows, np.ones(len(rows)), (len(names), len(rows))), targets)
    weights = _damped(members @ sparse)
    inputs = np.zeros((len(targets), 0), dtype=np.float32) if vectors is None else np.float32(ENCODER_SCALE) * vectors
    dense = _unit(np.asarray(members @ inputs, dtype=np.float32))
    if len(names) > 1 and len(targets) * len(names) <= REFINED_CELLS:
        for _ in range(STEPS):
            errors = _divided(_errors(sparse, inputs, weights, dense, targets), targets)
            weights = _pruned((weights - errors @ sparse).tocsr())
            dense = dense - np.asarray(errors @ inputs, dtype=np.float32)
    by_feature = (SCALE * weights).T.tocsr()
    by_feature.sort_indices()
    return PrunedHead(
        tuple(names.tolist()),
        by_feature.indptr.astype(np.int64),
        by_feature.indices.astype(np.int32),
        by_feature.data.astype(np.float32),
        np.ascontiguousarray(np.float32(SCALE * ENCODER_SCALE) * dense.T),
    )


def _without_common(sparse: csr_matrix, targets: Labels, size: int) -> csr_matrix:
    """0 for the terms that more than `COMMON` of the labels have."""
    from scipy.sparse import diags

    members = _picks(targets, np.arange(len(targets)), np.ones(len(targets)), (size, len(targets)))
    labels_with = np.bincount((members @ sparse).indices, minlength=sparse.shape[1])
    rare: csr_matrix = (sparse @ diags((labels_with <= COMMON * size).astype(np.float32))).tocsr()
    rare.eliminate_zeros()
    return rare


def _damped(means: csr_matrix) -> csr_matrix:
    """(labels, features) of unit rows"""
    from scipy.sparse import diags

    means = means.tocsr()
    means.data = np.log1p(means.data / DAMPING).astype(np.float32)
    means = _pruned(means)
    lengths = np.sqrt(np.asarray(means.multiply(means).sum(axis=1)).ravel())
    unit: csr_matrix = (diags((1 / np.maximum(lengths, 1e-12)).astype(np.float32)) @ means).tocsr()
    return unit


def _pruned(weights: csr_matrix) -> csr_matrix:
    """The `WEIGHTS_PER_ROUTE` largest of each row, equal ones by feature."""
    from scipy.sparse import csr_matrix

    weights.sort_indices()
    kept: list[npt.NDArray[np.int64]] = []
    for begin, end in zip(weights.indptr[:-1].tolist(), weights.indptr[1:].tolist(), strict=True):
        order = np.argsort(-np.abs(weights.data[begin:end]), kind="stable")[:WEIGHTS_PER_ROUTE]
        kept.append(begin + np.sort(order))
    at = np.concatenate(kept)
    starts = np.cumsum([0, *map(len, kept)])
    return csr_matrix((weights.data[at], weights.indices[at], starts), shape=weights.shape)


def _errors(sparse: csr_matrix, inputs: Floats, weights: csr_matrix, dense: Floats, targets: Labels) -> csr_matrix:
    """(labels, rows): probability of each label less 1 for the row's own, where that is not negligible."""
    columns = weights.T.tocsr()
    parts: list[tuple[Labels, Labels, Scalars]] = []
    for start in range(0, len(targets), CHUNK):
        rows = slice(start, start + CHUNK)
        logits = SCALE * (np.asarray((sparse[rows] @ columns).todense()) + inputs[rows] @ dense.T)
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        shares[np.arange(len(shares)), targets[rows]] -= 1
        at, label = np.nonzero(np.abs(shares) > NEGLIGIBLE)
        parts.append((label, start + at, shares[at, label]))
    label, row, share = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    return _picks(label, row, share, (weights.shape[0], len(targets)))


def _picks(labels: Labels, rows: Labels, values: Scalars, shape: tuple[int, int]) -> csr_matrix:
    from scipy.sparse import csr_matrix

    return csr_matrix((values.astype(np.float32), (labels, rows)), shape=shape)


def _divided(picks: csr_matrix, targets: Labels) -> csr_matrix:
    """Each label's row divided by how many rows it has."""
    from scipy.sparse import diags

    divided: csr_matrix = (diags((1 / np.bincount(targets)).astype(np.float32)) @ picks).tocsr()
    return divided


def _unit(rows: Floats) -> Floats:
    lengths: Floats = np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12).astype(np.float32)
    return rows / lengths
