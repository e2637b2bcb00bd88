"""Token ids to text, piece by piece, without ever cutting a character."""

from __future__ import annotations

from collections.abc import Callable

REPLACEMENT = "\ufffd"  # what an incomplete character decodes to


class Detokenizer:
    """The pieces given out, put together, are the decoding of all tokens at once.

    Only the last piece's tokens are decoded again, as context: the text a token adds can depend on the one before
    (a leading space), not on earlier ones.
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def push(self, token: int) -> str:
        """Text that `token` completes; empty while a character is incomplete."""
        self._pending.append(token)
        text = self._decode(self._context + self._pending)
        if text.endswith(REPLACEMENT) or len(text) <= len(self._context_text):
            return ""
        return self._take(text)

    def flush(self) -> str:
        """The rest, when no token will follow: an incomplete character becomes U+FFFD, as in a full decode."""
        return self._take(self._decode(self._context + self._pending)) if self._pending else ""

    def _take(self, text: str) -> str:
        piece = text[len(self._context_text) :]
        self._context, self._pending = self._pending, []
        self._context_text = self._decode(self._context)
        return piece
