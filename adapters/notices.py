"""Hearing soon that the registry changed: PostgreSQL says so itself, SQLite's change counter is read every 25 ms.

Nothing rests on it: whoever waits here looks at the registry at the latest when `LONGEST_SECONDS` are over.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from typing import Any, Protocol

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from .errors import RegistryUnavailable

CHANNEL = "branchline"
LONGEST_SECONDS = 1.0
POLL_SECONDS = 0.025
log = logging.getLogger("branchline.registry")


class Notices(Protocol):
    """Used by one thread; only `wake` may be called from others. Raises nothing of the database: the reader will."""

    def wait(self) -> None:
        """Return when the registry may have changed since the last call began, when woken, or after a while."""

    def wake(self) -> None:
        """End the wait that is going on, or the next one."""

    def close(self) -> None:
        """Give the connection back."""


def notices_of(engine: Engine) -> Notices:
    """The fastest way that this database offers."""
    if engine.dialect.name == "sqlite":
        return ChangeCounter(engine)
    return Listener(engine) if engine.dialect.driver == "psycopg" else Polling(POLL_SECONDS * 10)


class Polling:
    """Says every `seconds` that the registry may have changed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._woken = threading.Event()

    def wait(self) -> None:
        self._woken.wait(self._seconds)
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None: ...


class ChangeCounter:
    """SQLite: `PRAGMA data_version` moves with every commit of another connection, and costs microseconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: PoolProxiedConnection | None = None
        self._seen: object = None
        self._woken = threading.Event()

    def wait(self) -> None:
        deadline = time.monotonic() + LONGEST_SECONDS
        while not self._woken.wait(POLL_SECONDS) and time.monotonic() < deadline:
            found = self._read()
            if found != self._seen:
                self._seen = found
                break
        else:
            self.close()  # the file may be another one by now, and a connection that is taken anew is to that one
        self._woken.clear()

    def wake(self) -> None:
        self._woken.set()

    def close(self) -> None:
        self._seen = None  # each connection counts for itself
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _read(self) -> object:
        try:
            if self._connection is None:
                self._connection = self._engine.raw_connection()
            cursor = self._connection.cursor()
            cursor.execute("PRAGMA data_version")
            return cursor.fetchone()
        except (SQLAlchemyError, RegistryUnavailable, self._engine.dialect.loaded_dbapi.Error):
            self.close()
            return None


class Listener:
    """PostgreSQL: LISTEN on a connection of its own. Where that is lost, it is made anew at the next wait."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pooled: PoolProxiedConnection | None = None
        self._connection: Any = None  # psycopg's, inside it
        self._inside, self._outside = socket.socketpair()
        self._inside.setblocking(False)

    def wait(self) -> None:
        if self._connection is not None and self._connection.closed:
            self._lose()
        if self._connection is None and self._listen():
            return  # what changed before it listened has to be looked for
        watched = [self._inside] if self._connection is None else [self._inside, self._connection]
        ready, _, _ = select.select(watched, [], [], LONGEST_SECONDS)
        if self._inside in ready:
            with contextlib.suppress(BlockingIOError):
                self._inside.recv(4096)
        if self._connection in ready:
            self._drain()

    def wake(self) -> None:
        with contextlib.suppress(OSError):  # closed already
            self._outside.send(b".")

    def close(self) -> None:
        self._lose()
        self._inside.close()
        self._outside.close()

    def _listen(self) -> bool:
        try:
            self._pooled = self._engine.raw_connection()
            self._connection = self._pooled.driver_connection
            self._connection.autocommit = True
            self._connection.execute(f"LISTEN {CHANNEL}")
        except (SQLAlchemyError, self._engine.dialect.loaded_dbapi.Error):
            self._lose()
        return self._connection is not None

    def _drain(self) -> None:
        try:
            for _ in self._connection.notifies(timeout=0):
                pass
        except self._engine.dialect.loaded_dbapi.Error as error:
            log.warning("the registry's notices are lost: %s; it is polled", error)
            self._lose()

    def _lose(self) -> None:
        if self._pooled is not None:
            self._pooled.invalidate()  # closes it: nobody else may get one that listens
        self._pooled = self._connection = None
