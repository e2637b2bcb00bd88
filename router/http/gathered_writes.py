"""A transport that sends in one system call what is written to it in one turn of the event loop.

An answer's head and body are written one after the other, and so are the events of a stream that came together.
"""

from __future__ import annotations

import asyncio

AT_ONCE = 64 * 1024  # bytes that are sent without waiting for more: else a writer would not feel that nobody reads


class GatheredWrites:
    """The part of `asyncio.Transport` that uvicorn uses, around one of asyncio's."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._pieces: list[bytes] = []
        self._size = 0
        self.get_extra_info = transport.get_extra_info
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading

    def write(self, piece: bytes) -> None:
        if not self._pieces:
            self._loop.call_soon(self._send)
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size >= AT_ONCE:
            self._send()

    def close(self) -> None:
        """What was written before is sent."""
        self._send()
        self._transport.close()

    def abort(self) -> None:
        self._pieces.clear()
        self._transport.abort()

    def _send(self) -> None:
        if self._pieces:
            pieces, self._pieces, self._size = self._pieces, [], 0
            # `writelines` of Python 3.12 and 3.13 keeps any number of bytes for who does not read (CVE-2024-12254).
            self._transport.write(b"".join(pieces))
