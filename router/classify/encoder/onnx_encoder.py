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
from .layout import TOKENIZER, Layout
from .source import missing_package

Tokens = npt.NDArray[np.int64]

CHARACTERS_PER_TOKEN = 16  # more of a text is not even tokenised
BATCH_TEXTS = 32
BATCH_TOKENS = 2_048  # padding included


class Session(Protocol):
    """The part of `onnxruntime.InferenceSession` that is used."""

    def run(self, output_names: None, feed: dict[str, Tokens]) -> list[Any]: ...


@dataclass(frozen=True)
class OnnxEncoder:
    """An `Encoder`. `tokenizer` is a `tokenizers.Tokenizer`; both parts may be used by several threads at once."""

    ref: EncoderRef
    layout: Layout
    tokenizer: Any
    session: Session

    def encode(self, texts: Sequence[str]) -> Floats:
        """(texts, dimension) float32, rows of length 1; a text's row does not depend on the others.

        int8 runs text by text: its scales are taken from a whole batch, so that neighbours would change a vector
        (by 0.04 in an element), and on a processor a batch is no faster. fp32 runs in batches of similar length,
        where neighbours change a vector by less than 1e-6.
        """
        rows = [self._tokens(text) for text in texts]
        vectors = np.empty((len(rows), self.ref.dimension), dtype=np.float32)
        for picked in _batches([len(row) for row in rows], 1 if self.ref.precision == "int8" else BATCH_TEXTS):
            vectors[picked] = self._run([rows[at] for at in picked])
        return vectors

    def _tokens(self, text: str) -> list[int]:
        # A lone surrogate, which no UTF-8 can carry, becomes a question mark.
        text = text[: CHARACTERS_PER_TOKEN * self.ref.max_tokens].encode(errors="replace").decode()
        text = self.layout.prompt + (text.lower() if self.layout.lowercase else text)
        found: list[int] = self.tokenizer.encode(text).ids
        return found or [self.layout.pad_token]

    def _run(self, rows: Sequence[Sequence[int]]) -> Floats:
        ids = np.full((len(rows), max(map(len, rows))), self.layout.pad_token, dtype=np.int64)
        mask = np.zeros_like(ids)
        for at, row in enumerate(rows):
            ids[at, : len(row)] = row
            mask[at, : len(row)] = 1
        vectors: Floats = self.session.run(None, {"input_ids": ids, "attention_mask": mask})[0]
        return vectors


def build_encoder(layout: Layout, precision: Precision, content: bytes, threads: int) -> OnnxEncoder:
    """Raises `EncoderUnavailable` where the parts do not load or do not fit together."""
    try:
        from onnxruntime import InferenceSession, SessionOptions
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_package(error) from error
    options = SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        tokenizer = Tokenizer.from_file(str(layout.folder / TOKENIZER))
        tokenizer.no_padding()
        tokenizer.enable_truncation(layout.max_tokens)
        session = InferenceSession(content, options, providers=["CPUExecutionProvider"])
        encoder = OnnxEncoder(layout.ref(precision), layout, tokenizer, session)
        probe = encoder.encode(["", "a"])
    except Exception as error:  # both libraries raise bare exceptions of their own
        raise EncoderUnavailable(f"encoder {layout.name} does not run: {error!s:.200}") from error
    if not np.allclose(np.linalg.norm(probe, axis=1), 1, atol=1e-3):
        raise EncoderUnavailable(
            f"encoder {layout.name} gives vectors that are not of length 1", hint="check its weights"
        )
    return encoder


def _batches(lengths: Sequence[int], most: int) -> Iterator[list[int]]:
    """Positions in batches of similar length, at most `most` texts and `BATCH_TOKENS` tokens each."""
    batch: list[int] = []
    for at in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) == most or (len(batch) + 1) * lengths[at] > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(at)
    if batch:
        yield batch
