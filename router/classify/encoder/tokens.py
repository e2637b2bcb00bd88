"""Texts to token ids by an encoder's own `tokenizer.json`, cut where the encoder cuts them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ...errors import EncoderUnavailable
from .layout import TOKENIZER, Layout
from .source import missing_package

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = npt.NDArray[np.int64]

CHARACTERS_PER_TOKEN = 16  # more of a text is not even tokenised


@dataclass(frozen=True)
class Tokenization:
    """Any text to at least one and at most `max_tokens` ids. Thread-safe."""

    tokenizer: Tokenizer
    max_tokens: int
    pad_token: int
    lowercase: bool
    prompt: str

    def tokens(self, text: str) -> list[int]:
        # A lone surrogate, which no UTF-8 can carry, becomes a question mark.
        text = text[: CHARACTERS_PER_TOKEN * self.max_tokens].encode(errors="replace").decode()
        text = self.prompt + (text.lower() if self.lowercase else text)
        return self.tokenizer.encode(text).ids or [self.pad_token]


def load_tokenization(layout: Layout) -> Tokenization:
    """Raises `EncoderUnavailable` where `tokenizers` is missing or cannot read the file."""
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_package(error) from error
    try:
        tokenizer = Tokenizer.from_file(str(layout.folder / TOKENIZER))
    except Exception as error:  # it raises nothing more precise
        raise EncoderUnavailable(f"{TOKENIZER} of {layout.name} cannot be read: {error!s:.200}") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(layout.max_tokens)
    return Tokenization(tokenizer, layout.max_tokens, layout.pad_token, layout.lowercase, layout.prompt)


def pad(rows: Sequence[Sequence[int]], pad_token: int) -> tuple[Ids, Ids]:
    """Ids and mask, both (rows, longest row): `pad_token` and 0 beyond a row's end."""
    ids = np.full((len(rows), max(map(len, rows))), pad_token, dtype=np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
        mask[at, : len(row)] = 1
    return ids, mask
