"""The encoder itself: `tokenizers` cuts the texts, ONNX Runtime makes the vectors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import EncoderUnavailable
from ..encoding import EncoderRef, Precision
from ..features import Floats
from .layout import Layout
from .source import missing_package
from .tokens import Tokenization, load_tokenization, pad

Tokens = npt.NDArray[np.int64]

BATCH_TEXTS = 32
BATCH_TOKENS = 2_048  # padding included


class Session(Protocol):
    """The part of `onnxruntime.InferenceSession` that is used."""

    def run(self, output_names: None, feed: dict[str, Tokens]) -> list[Any]: ...


@dataclass(frozen=True)
class OnnxEncoder:
    """An `Encoder`. Its parts may be used by several threads at once."""

    ref: EncoderRef
    tokenization: Tokenization
    session: Session

    def encode(self, texts: Sequence[str]) -> Floats:
        """(texts, dimension) float32, rows of length 1; a text's row does not depend on the others.

        int8 runs text by text: its scales are taken from a whole batch, so that neighbours would change a vector
        (by 0.04 in an element), and on a processor a batch is no faster. fp32 runs in batches of similar length,
        where neighbours change a vector by less than 1e-6. Raises `EncoderUnavailable` where a vector is not finite.
        """
        rows = [self.tokenization.tokens(text) for text in texts]
        vectors = np.empty((len(rows), self.ref.dimension), dtype=np.float32)
        for picked in batches([len(row) for row in rows], 1 if self.ref.precision == "int8" else BATCH_TEXTS):
            ids, mask = pad([rows[at] for at in picked], self.tokenization.pad_token)
            vectors[picked] = self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        if not np.isfinite(vectors).all():
            raise EncoderUnavailable(
                f"encoder {self.ref.name} gives vectors that hold NaN or Inf", hint="check its weights"
            )
        return vectors


def build_encoder(layout: Layout, precision: Precision, content: bytes, threads: int) -> OnnxEncoder:
    """Raises `EncoderUnavailable` where the parts do not load or do not fit together."""
    try:
        from onnxruntime import InferenceSession, SessionOptions
    except ImportError as error:
        raise missing_package(error) from error
    tokenization = load_tokenization(layout)
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
        encoder = OnnxEncoder(layout.ref(precision), tokenization, session)
        probe = encoder.encode(["", "a"])
    except EncoderUnavailable:
        raise
    except Exception as error:  # it raises exceptions of its own, bare ones among them
        raise EncoderUnavailable(f"encoder {layout.name} does not run: {error!s:.200}") from error
    if not np.allclose(np.linalg.norm(probe, axis=1), 1, atol=1e-3):
        raise EncoderUnavailable(
            f"encoder {layout.name} gives vectors that are not of length 1", hint="check its weights"
        )
    return encoder


def batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Positions in batches of similar length, at most `most` texts and `BATCH_TOKENS` tokens each."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == most or (len(batch) + 1) * lengths[at] > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
