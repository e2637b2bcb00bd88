"""The sockets to a database server, cut from outside: whoever waits for an answer that never comes is told so."""

from __future__ import annotations

import contextlib
import os
import socket
import weakref
from typing import Any

from sqlalchemy import Engine, event


class ServerSockets:
    """Those of an engine's connections that are used from here on; SQLite has none.

    A driver waits for an answer as long as the connection lives, and one through a balancer or to a backend that hangs
    lives for ever: the kernel at the other end still acknowledges.
    """

    def __init__(self, engine: Engine) -> None:
        self._connections: weakref.WeakSet[Any] = weakref.WeakSet()
        if engine.dialect.driver == "psycopg":
            event.listen(engine, "checkout", self._checked_out)

    def cut(self) -> None:
        """End every connection; who waits on one gets its error, and the next one is made anew. From any thread."""
        for connection in list(self._connections):
            # It may be closed at any moment, which is as good.
            with contextlib.suppress(Exception), socket.socket(fileno=os.dup(connection.fileno())) as end:
                end.shutdown(socket.SHUT_RDWR)

    def _checked_out(self, connection: object, _record: object, _proxy: object) -> None:
        self._connections.add(connection)
