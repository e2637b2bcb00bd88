"""One HTTP/1.1 connection to an engine: one exchange at a time, parsed by llhttp, its bytes handed on as they come.

Made for a gateway's request path: next to a general client it saves most of what a request costs (bench/RESULTS.md).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

MAX_HEAD_BYTES = 64 * 1024
MAX_ANSWER_BYTES = 64 * 1024 * 1024  # of one that is read whole
HIGH_WATER = 256 * 1024  # bytes that came and nobody has read: no more is taken from the engine until somebody does


class ConnectionLost(Exception):
    """The engine closed or broke the connection before a byte of its answer came."""


class AnswerBroken(Exception):
    """The engine broke off within its answer, or what it sent is no HTTP."""


class Incoming:
    """An answer on its way in. Reading raises `ConnectionLost`, `AnswerBroken`, or what `fail` was given.

    Whoever stops before its end closes it, which closes the connection: by that an engine learns that it shall stop.
    """

    __slots__ = ("_connection", "_error", "_pieces", "_size", "_waiter", "complete", "headers", "status")

    def __init__(self, connection: Connection) -> None:
        self._connection: Connection | None = connection
        self._pieces: list[bytes] = []
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None
        self._error: BaseException | None = None
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.complete = False

    @property
    def content_type(self) -> str | None:
        given = self.headers.get(b"content-type")
        return None if given is None else given.decode("latin-1")

    async def begun(self) -> None:
        """Wait until status and headers are there."""
        while not self.status:
            if self._error is not None:
                raise self._error
            await self._news()

    async def readany(self) -> bytes:
        """What has come since, at least a byte; empty at the end."""
        while not self._pieces:
            if self._error is not None:
                raise self._error
            if self.complete:
                return b""
            await self._news()
        pieces, self._pieces, self._size = self._pieces, [], 0
        if self._connection is not None:
            self._connection.resume_reading()
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def read(self) -> bytes:
        """All that is left; `AnswerBroken` where that is over `MAX_ANSWER_BYTES`."""
        whole = await self.readany()
        if self.complete and not self._pieces:
            return whole
        pieces, size = [whole], len(whole)
        while piece := await self.readany():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise AnswerBroken("it is too long")
        return b"".join(pieces)

    def close(self) -> None:
        """Want no more of it. Nothing where it is complete."""
        self.fail(AnswerBroken("it was closed"))

    def fail(self, error: BaseException) -> None:
        """End it with `error`, for whoever reads it now or later. Nothing where it has ended."""
        connection = self._ended()
        if connection is not None:
            self._error = error
            connection.abort()
            self._tell()

    def feed(self, piece: bytes) -> bool:
        """Take what came; false where that is more than is read."""
        self._pieces.append(piece)
        self._size += len(piece)
        self._tell()
        return self._size < HIGH_WATER

    def begin(self, status: int) -> None:
        self.status = status
        self._tell()

    def finish(self) -> None:
        self.complete = True
        self._ended()
        self._tell()

    def _ended(self) -> Connection | None:
        connection, self._connection = self._connection, None
        return connection

    async def _news(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _tell(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Connection(asyncio.Protocol):
    """`on_idle` is called when an exchange is complete and another may follow, `on_lost` when the connection ends."""

    def __init__(self, on_idle: Callable[[Connection], None], on_lost: Callable[[Connection], None]) -> None:
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._incoming: Incoming | None = None
        self._paused = False
        self._done = False
        self._until_closed = False
        self._stays = False
        self._head_bytes = 0
        self._unread_head = 0
        self._head: dict[bytes, bytes] = {}

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, head: bytes, body: bytes) -> Incoming:
        """Begin an exchange with a request's head, which ends with an empty line, and its body.

        Only one at a time. Raises `ConnectionLost`.
        """
        if self._transport is None or self._transport.is_closing():
            raise ConnectionLost("the connection was closed")
        self._incoming = Incoming(self)
        self._done = False
        self._unread_head = 0
        self._transport.write(head + body)
        return self._incoming

    def abort(self) -> None:
        """Close at once, whatever is under way."""
        self._incoming = None
        if self._transport is not None:
            self._transport.abort()

    def resume_reading(self) -> None:
        if self._paused and self.is_open:
            self._paused = False
            cast(asyncio.Transport, self._transport).resume_reading()

    # -- asyncio --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        incoming = self._incoming
        if incoming is None:  # nobody asked: whatever it is, it must not answer the next request
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            incoming.fail(AnswerBroken("it is no HTTP"))
            return
        if self._done:
            self._become_idle(incoming)
        elif not incoming.status:  # httptools holds back a line that has no end yet
            self._unread_head += len(data)
            if self._unread_head > MAX_HEAD_BYTES:
                incoming.fail(AnswerBroken("its head is too long"))

    def connection_lost(self, exc: Exception | None) -> None:
        incoming, self._incoming, self._transport = self._incoming, None, None
        if incoming is not None and self._until_closed and exc is None:
            incoming.finish()
        elif incoming is not None:
            began = incoming.status or self._head_bytes
            incoming.fail(AnswerBroken("it broke off") if began else ConnectionLost("the connection was closed"))
        self._on_lost(self)

    # -- llhttp ---------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self._done:
            raise AnswerBroken("more than one answer")
        self._head, self._head_bytes, self._until_closed = {}, 1, False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise AnswerBroken("its head is too long")
        self._head[name.lower()] = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and self._incoming is not None:
            self._until_closed = not (b"content-length" in self._head or b"transfer-encoding" in self._head)
            self._incoming.headers = self._head
            self._incoming.begin(status)

    def on_body(self, piece: bytes) -> None:
        incoming = self._incoming
        if incoming is not None and not incoming.feed(piece) and not self._paused and self.is_open:
            self._paused = True
            cast(asyncio.Transport, self._transport).pause_reading()

    def on_message_complete(self) -> None:
        self._done = self._incoming is not None and self._incoming.status != 0  # 0: "continue", or a hint
        self._stays = self._parser.should_keep_alive() and not self._until_closed  # llhttp knows it no longer later

    def _become_idle(self, incoming: Incoming) -> None:
        self._incoming = None
        self._head_bytes = 0
        transport = self._transport
        incoming.finish()
        if transport is None:
            return
        if not self._stays or transport.is_closing() or transport.get_write_buffer_size():
            transport.abort()
            return
        self.resume_reading()
        self._on_idle(self)
