"""What an encoder is to a classifier: who makes the vectors, and the vectors themselves. Nothing is loaded here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from .features import Floats

Precision = Literal["fp32", "int8"]


@dataclass(frozen=True, slots=True)
class EncoderRef:
    """Which encoder: the same ref gives the same vectors up to rounding.

    `name` is what the user called it (a folder's name or a hub id, never a path), `digest` the sha256 over its
    config, tokenizer and weights, `dimension` the length of a vector, `max_tokens` where a text is cut.
    """

    name: str
    digest: str
    precision: Precision
    dimension: int
    max_tokens: int


class Encoder(Protocol):
    """Text to vectors. Deterministic, thread-safe; blocks, so never on the event loop."""

    @property
    def ref(self) -> EncoderRef: ...

    def encode(self, texts: Sequence[str]) -> Floats:
        """(texts, dimension) float32, each row of length 1, also for an empty text. Raises `EncoderUnavailable`."""
