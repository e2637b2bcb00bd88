"""Rows beside the vectors an encoder gave their texts, so that both are picked and split together."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapters.rows import LabelledText

from .encoding import Encoder
from .features import Floats, reading

Keys = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class EncodedRows:
    """`vectors` (rows, dimension), `None` without an encoder."""

    rows: Sequence[LabelledText]
    vectors: Floats | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> list[str]:
        return [row.label for row in self.rows]

    @property
    def texts(self) -> list[str]:
        return [row.text for row in self.rows]

    def where(self, wanted: Sequence[bool]) -> EncodedRows:
        """The rows for which `wanted` (rows,) is true."""
        rows = [row for row, keep in zip(self.rows, wanted, strict=True) if keep]
        return EncodedRows(rows, None if self.vectors is None else self.vectors[np.array(wanted, dtype=bool)])

    def vector(self, at: int) -> Floats | None:
        """The vector of row `at`."""
        return None if self.vectors is None else self.vectors[at]


def encode_rows(rows: Sequence[LabelledText], encoder: Encoder | None) -> EncodedRows:
    """`rows` with the vectors `encoder` gives them. Raises what `encoder.encode` raises."""
    if encoder is None:
        return EncodedRows(rows)
    vectors = encoder.encode([row.text for row in rows])
    return EncodedRows(rows, vectors.reshape(len(rows), encoder.ref.dimension))


def joined(first: EncodedRows, second: EncodedRows) -> EncodedRows:
    """The rows of both."""
    rows = [*first.rows, *second.rows]
    if first.vectors is None or second.vectors is None:
        return EncodedRows(rows)
    return EncodedRows(rows, np.concatenate([first.vectors, second.vectors]))


def row_key(label: str, text: str) -> int:
    """The first 64 bits of sha256(label, NUL, the reading of text): tells a row again without keeping its text."""
    digest = hashlib.sha256(f"{label}\0{reading(text)}".encode(errors="surrogatepass")).digest()
    return int.from_bytes(digest[:8], "little")


def row_keys(rows: Sequence[LabelledText]) -> Keys:
    """The keys of `rows`, ascending and distinct."""
    return np.unique(np.array([row_key(row.label, row.text) for row in rows], dtype=np.uint64))
