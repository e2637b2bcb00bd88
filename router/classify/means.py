"""Class means of TF-IDF features, and how similar rows are to them that they are no part of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Cosines = npt.NDArray[np.float32]


class ClassMeans:
    """Means of the rows of each label of `matrix` (rows, features); `typical` is u where a label has a single row."""

    def __init__(self, matrix: csr_matrix, labels: Sequence[str], typical: float | None = None) -> None:
        from scipy.sparse import csr_matrix

        self.labels = np.array(sorted(set(labels)))
        self.columns = {label: at for at, label in enumerate(self.labels.tolist())}
        own = np.array([self.columns[label] for label in labels])
        shape = (len(self.labels), len(own))
        members = csr_matrix((np.ones(len(own), dtype=np.float32), (own, np.arange(len(own)))), shape=shape)
        self.sums: csr_matrix = (members @ matrix).tocsr()
        self.squares = _squares(self.sums)
        self.counts = np.bincount(own)
        lengths = np.bincount(own, weights=_squares(matrix))
        several = self.counts > 1
        products = (self.squares - lengths) / np.maximum(self.counts * (self.counts - 1), 1)
        if typical is None:
            typical = float(np.median(products[several])) if several.any() else 0.0
        self.typical = typical
        self.products = np.where(several, products, typical)
        self.lengths = lengths / self.counts

    def cosines(self, matrix: csr_matrix, at_least: int = 1) -> Cosines:
        """(rows, labels) up to the row's own length, which changes no order; the rows are none of theirs.

        A label of fewer rows than `at_least` is seen as if it had so many.
        """
        counts = np.maximum(self.counts, at_least)
        squares = self.products + (self.lengths - self.products) / counts
        scale = (1 / (self.counts * np.sqrt(np.maximum(squares, 1e-12)))).astype(np.float32)
        products: Cosines = np.asarray((matrix @ self.sums.T).todense(), dtype=np.float32)
        return products * scale

    def left_out(self, matrix: csr_matrix, label: str) -> Cosines:
        """(rows,): rows of `label`, each against the mean of the others; 0 where there is no other."""
        at = self.columns[label]
        products = np.asarray((matrix @ self.sums[at].T).todense()).ravel()
        lengths = _squares(matrix)
        rest = self.squares[at] - 2 * products + lengths
        known = rest > 1e-6
        found: Cosines = np.where(known, (products - lengths) / np.sqrt(np.where(known, rest, 1)), 0)
        return found.astype(np.float32)


def _squares(matrix: csr_matrix) -> npt.NDArray[np.float64]:
    squares: npt.NDArray[np.float64] = np.asarray(matrix.multiply(matrix).sum(axis=1), dtype=np.float64).ravel()
    return squares
