"""Weights of which each label keeps a few, stored feature by feature: the head of thousands of labels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .features import Floats, Indices, Scalars, Sparse

Columns = npt.NDArray[np.int32]
SHARED = 0.1  # a feature that so many of the labels keep is read as one dense row: ten times its room, less time


@dataclass(frozen=True, slots=True)
class PrunedHead:
    """`values` and `columns` (weights kept,) feature by feature: those of feature f from `starts[f]` to `starts[f+1]`.

    `starts` (features + 1,); `dense` (dimension, labels) as in `Head`. The weights of features that many labels share
    stand in `table` (such features, labels) too, in full; `rows` (features,) says in which row, -1 for the others.
    """

    labels: tuple[str, ...]
    starts: Indices
    columns: Columns
    values: Floats
    dense: Floats
    rows: Columns = field(init=False, repr=False)
    table: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shared = np.flatnonzero(np.diff(self.starts) > SHARED * len(self.labels))
        rows = np.full(len(self.starts) - 1, -1, dtype=np.int32)
        rows[shared] = np.arange(len(shared))
        object.__setattr__(self, "rows", rows)
        object.__setattr__(self, "table", self.weights_of(shared))

    def logits(self, sparse: Sparse, vector: Floats | None = None) -> Scalars:
        """(labels,); `vector` (dimension,) is the encoder's, where there is one."""
        rows = self.rows[sparse.indices]
        is_shared = rows >= 0
        of_shared = sparse.values[is_shared] @ self.table.take(rows[is_shared], axis=0)
        logits: Scalars = self._of_others(sparse.indices[~is_shared], sparse.values[~is_shared]) + of_shared
        return logits if vector is None else logits + vector @ self.dense

    def _of_others(self, indices: Indices, values: Floats) -> Scalars:
        """(labels,): what the weights kept of some features add up to."""
        begins = self.starts[indices]
        counts = self.starts[indices + 1] - begins
        first = np.cumsum(counts) - counts
        at = np.arange(counts.sum()) + np.repeat(begins - first, counts)
        gains = self.values[at] * np.repeat(values, counts)
        return np.bincount(self.columns[at], weights=gains, minlength=len(self.labels)).astype(np.float64)

    def weights_of(self, indices: Indices) -> Floats:
        """(indices, labels): the weights of some features, in full."""
        weights = np.zeros((len(indices), len(self.labels)), dtype=np.float32)
        for row, index in zip(weights, indices.tolist(), strict=True):
            here = slice(self.starts[index], self.starts[index + 1])
            row[self.columns[here]] = self.values[here]
        return weights

    def without(self, label: str) -> PrunedHead:
        """The head of the other labels; itself where it does not have `label`."""
        if label not in self.labels:
            return self
        gone = self.labels.index(label)
        kept = self.columns != gone
        before = np.concatenate([[0], np.cumsum(kept)])  # of the weights up to each
        columns = self.columns[kept]
        return PrunedHead(
            self.labels[:gone] + self.labels[gone + 1 :],
            before[self.starts].astype(np.int64),
            (columns - (columns > gone)).astype(np.int32),
            self.values[kept],
            np.ascontiguousarray(np.delete(self.dense, gone, axis=1)),
        )
