"""Frames on a socket between parent and worker: a length, a letter that says what it is, and the bytes."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Mapping
from typing import Any, Literal

Kind = Literal[b"J", b"B", b"E", b"X"]  # a JSON document, bytes of a body, the end of one, an error
MAX_BYTES = 1 << 30
_HEAD = struct.Struct("!Ic")


def frame(kind: Kind, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload), kind) + payload


def json_frame(document: Mapping[str, object], kind: Kind = b"J") -> bytes:
    return frame(kind, json.dumps(document, separators=(",", ":")).encode())


async def read_frame(reader: asyncio.StreamReader) -> tuple[bytes, bytes] | None:
    """The next frame's kind and bytes, `None` where the other side has ended, also in the middle of one."""
    try:
        size, kind = _HEAD.unpack(await reader.readexactly(_HEAD.size))
        if size > MAX_BYTES:
            return None
        return kind, await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def read_json(reader: asyncio.StreamReader) -> dict[str, Any] | None:
    """As `read_frame`, for who expects a document and nothing else."""
    found = await read_frame(reader)
    document: dict[str, Any] | None = json.loads(found[1]) if found is not None else None
    return document
