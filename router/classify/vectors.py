"""Texts by their encoder's vectors: a cosine on a scale of its own, whatever the encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .features import Floats, Scalars

FLOOR_ROWS = 500


@dataclass(frozen=True, slots=True)
class VectorIndex:
    """`vectors` (texts, dimension), rows of length 1; `floor` is the mean cosine of texts with different labels.

    Encoders differ in what cosine two unrelated texts have (near 0 for some, 0.7 for others).
    """

    vectors: Floats
    floor: float

    def similarities(self, vector: Floats) -> Scalars:
        """(texts,) max(0, (cosine − floor) / (1 − floor)), so 0 for unrelated texts and 1 for equal ones."""
        cosines = (self.vectors.reshape(-1, len(vector)) @ vector).astype(np.float64)
        return np.clip((cosines - self.floor) / (1 - self.floor), 0.0, 1.0)


def build_vector_index(vectors: Sequence[Floats], labels: Sequence[str]) -> VectorIndex:
    """The index of texts with these vectors (dimension,) and labels; the floor is taken from at most 500 of them."""
    stacked = np.array(vectors, dtype=np.float32)
    if not len(stacked):
        return VectorIndex(stacked, 0.0)
    some = np.linspace(0, len(stacked) - 1, min(FLOOR_ROWS, len(stacked))).astype(np.int64)
    names = np.array(labels, dtype=object)[some]
    apart = names[:, None] != names[None, :]
    cosines = (stacked[some] @ stacked[some].T)[apart]
    return VectorIndex(stacked, float(np.clip(cosines.mean(), 0.0, 0.95)) if len(cosines) else 0.0)
