"""The requests that gateways are measured with: real texts, each another one, in bodies of an exact size.

A body is a system message that fills it up and a user message with the text. The load generators put requests together
from four constant pieces, so that a request costs them little: `head`, as much of `filler` as is needed, `middle`,
the text, `tail`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

PATH = "/v1/chat/completions"
_MARK = "\x00"


@dataclass(frozen=True, slots=True)
class Template:
    """All requests of one cell: what is constant in them, as bytes of HTTP. `room` is shared by filler and text."""

    head: bytes
    filler: bytes
    middle: bytes
    tail: bytes
    room: int

    @classmethod
    def of(cls, model: str, size: int, *, stream: bool, key: str | None, filler: str) -> Template:
        """Requests to `model` whose bodies have `size` bytes each; `filler` is repeated as often as it takes.

        Raises `ValueError` where `size` leaves no room for a text.
        """
        messages = [{"role": "system", "content": _MARK}, {"role": "user", "content": _MARK}]
        asked: dict[str, object] = {"model": model, "messages": messages, "max_tokens": 64, "temperature": 0}
        body = json.dumps({**asked, "stream": True} if stream else asked, separators=(",", ":"))
        opening, middle, tail = (piece.encode() for piece in body.split(json.dumps(_MARK)[1:-1]))
        room = size - len(opening) - len(middle) - len(tail)
        if room < 1:
            raise ValueError(f"a body of {size} bytes has no room for a text")
        real = json.dumps(filler)[1:-1].encode()
        authorization = "" if key is None else f"authorization: Bearer {key}\r\n"
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: localhost\r\n{authorization}"
            f"content-type: application/json\r\ncontent-length: {size}\r\n\r\n"
        )
        return cls(head.encode() + opening, (real * (room // len(real) + 1))[:room], middle, tail, room)

    def request(self, text: bytes) -> bytes:
        """The request for one text, JSON-escaped as `texts` gives it."""
        return b"".join((self.head, self.filler[: self.room - len(text)], self.middle, text, self.tail))

    def write(self, folder: Path) -> None:
        """For a load generator in another process."""
        for name in ("head", "filler", "middle", "tail"):
            (folder / name).write_bytes(getattr(self, name))

    @classmethod
    def read(cls, folder: Path) -> Template:
        """What `write` wrote."""
        head, filler, middle, tail = ((folder / name).read_bytes() for name in ("head", "filler", "middle", "tail"))
        return cls(head, filler, middle, tail, len(filler))


def write_texts(path: Path, texts: Sequence[str]) -> None:
    """One line each, JSON-escaped: ASCII without quotes, bare backslashes or line ends."""
    path.write_bytes(b"".join(json.dumps(text)[1:-1].encode() + b"\n" for text in texts))


def endless_texts(path: Path, offset: int) -> Iterator[bytes]:
    """The texts of a file from number `offset` on, for ever; every later pass ends each text in its own number."""
    lines = path.read_bytes().splitlines()
    while True:
        number, at = divmod(offset, len(lines))
        yield lines[at] if number == 0 else b"%b %d" % (lines[at], number)
        offset += 1
