"""Connections to one engine: kept open between requests, made where none is free, a stale one replaced once."""

from __future__ import annotations

import asyncio
import ssl
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from .connection import Connection, ConnectionLost, Incoming

KEEP_ALIVE_SECONDS = 4.0  # less than the 5 s after which vLLM closes an idle connection


class Unreachable(Exception):
    """No connection can be made."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an engine listens."""

    host: str
    port: int
    tls: bool

    @classmethod
    def of(cls, url: str) -> Origin:
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return cls(parts.hostname or "", parts.port or (443 if tls else 80), tls)


class Connections:
    """Lives on one event loop. Requests may go to different origins; all of them are of one engine."""

    def __init__(self, *, connect_seconds: float) -> None:
        self._connect_seconds = connect_seconds
        self._origin: Origin | None = None
        self._trusted: ssl.SSLContext | None = None
        self._open: set[Connection] = set()
        self._idle: dict[Connection, float] = {}  # since when, in seconds on the loop's clock; the newest last

    async def send(self, origin: Origin, head: bytes, body: bytes) -> Incoming:
        """An exchange whose answer has begun. Where a kept connection is lost before that, it is tried once more on a
        new one: the engine may have closed the kept one in the same moment. It may also have died of the request, so
        one that cannot be reached then has lost the connection.

        Raises `Unreachable`, `ConnectionLost` and `AnswerBroken`.
        """
        if origin != self._origin:
            self._move_to(origin)
        kept = self._take()
        if kept is None:
            return await _exchange(await self._connect(origin), head, body)
        with suppress(ConnectionLost):
            return await _exchange(kept, head, body)
        try:
            connection = await self._connect(origin)
        except Unreachable as error:
            raise ConnectionLost("the connection was lost, and no other can be made") from error
        return await _exchange(connection, head, body)

    async def close(self) -> None:
        """End all of them, also those at work. Idempotent."""
        for connection in list(self._open):
            connection.abort()
        self._idle.clear()
        await asyncio.sleep(0)  # the transports close at the loop's next turn

    def _take(self) -> Connection | None:
        while self._idle:
            connection, since = self._idle.popitem()
            if connection.is_open and _is_fresh(since):
                return connection
            connection.abort()
        return None

    async def _connect(self, origin: Origin) -> Connection:
        loop = asyncio.get_running_loop()
        begin = partial(Connection, partial(self._became_idle, origin), self._was_lost)
        try:
            async with asyncio.timeout(self._connect_seconds):
                tls = await self._certificates() if origin.tls else None
                _, connection = await loop.create_connection(begin, origin.host, origin.port, ssl=tls)
        except (OSError, TimeoutError) as error:
            raise Unreachable(type(error).__name__) from error
        if connection.is_open:
            self._open.add(connection)
        return connection

    async def _certificates(self) -> ssl.SSLContext:
        """Whom to trust; reading that takes longer than all the rest of a connection."""
        if self._trusted is None:
            self._trusted = await asyncio.to_thread(ssl.create_default_context)
        return self._trusted

    def _became_idle(self, origin: Origin, connection: Connection) -> None:
        if origin != self._origin:
            connection.abort()
            return
        self._idle[connection] = asyncio.get_running_loop().time()
        oldest, since = next(iter(self._idle.items()))
        if not _is_fresh(since):
            del self._idle[oldest]
            oldest.abort()

    def _was_lost(self, connection: Connection) -> None:
        self._open.discard(connection)
        self._idle.pop(connection, None)

    def _move_to(self, origin: Origin) -> None:
        """A managed engine has a new port with each start: what is idle leads to nobody."""
        idle, self._idle = self._idle, {}
        for connection in idle:
            connection.abort()
        self._origin = origin


def _is_fresh(since: float) -> bool:
    return asyncio.get_running_loop().time() - since < KEEP_ALIVE_SECONDS


async def _exchange(connection: Connection, head: bytes, body: bytes) -> Incoming:
    incoming = connection.send(head, body)
    try:
        await incoming.begun()
    except BaseException:
        incoming.close()
        raise
    return incoming
