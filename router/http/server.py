"""The HTTP server around the app: uvicorn, with signals left to the gateway and a grace time for running answers."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from .client_connection import ClientConnection, Patience

GRACE_SECONDS = 15
# Longer than clients and balancers keep an idle connection: who closes first while the other sends loses a request.
IDLE_SECONDS = 75
TICKS = 5  # of uvicorn's, which are a tenth of a second
ACCEPTED_AT_ONCE = 64  # in one turn of the event loop; asyncio tries as often also where each try fails
QUIET_SECONDS = 10.0  # between two lines about connections that cannot be taken
_NOTHING_LEFT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
log = logging.getLogger("branchline.server")


class Listening(socket.socket):
    """A listening socket whose queue of connections asyncio does not cut to what is accepted at once."""

    def begin(self, backlog: int) -> None:
        """Listen, with so long a queue."""
        super().listen(backlog)

    def listen(self, backlog: int = 0, /) -> None:
        """It listens already."""


class GatewayServer(uvicorn.Server):
    """Signals are ours, so that Ctrl-C ends in one line and the heartbeat row goes away.

    With `should_exit` set it takes nobody new, and running answers get `GRACE_SECONDS`. Connections get `patience`.
    """

    def __init__(
        self, app: ASGIApp, *, accepted_at_once: int = ACCEPTED_AT_ONCE, patience: Patience | None = None
    ) -> None:
        self._patience = patience or Patience()
        self._quiet_until = 0.0
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_graceful_shutdown=GRACE_SECONDS,
                timeout_keep_alive=IDLE_SECONDS,
                backlog=accepted_at_once,
                http=ClientConnection,
                ws="none",
                interface="asgi3",
                proxy_headers=False,  # nothing here asks who a proxy says it speaks for
            )
        )

    def drain(self) -> bool:
        """Begin to stop; whether there was anything to stop that had not begun to."""
        if not self.started or self.should_exit:
            return False
        self.should_exit = True
        return True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(self._unhandled)
        await super().startup(sockets)

    def _unhandled(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """asyncio tells of each try to accept that failed, with a traceback; one line now and then says the same."""
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _NOTHING_LEFT and "socket" in context):
            loop.default_exception_handler(context)
        elif time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.error("connections have to wait: %s (raise the limit of open files: ulimit -n)", error.strerror)

    async def on_tick(self, counter: int) -> bool:
        if counter % TICKS == 0:
            now = time.monotonic()
            for connection in list(self.server_state.connections):
                if isinstance(connection, ClientConnection):
                    connection.close_if_late(now, self._patience)
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
