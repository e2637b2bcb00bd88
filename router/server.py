"""The HTTP server around the app: uvicorn, with signals left to the gateway and a grace time for running answers."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from .client_connection import ClientConnection, Patience

GRACE_SECONDS = 15
# Longer than clients and balancers keep an idle connection: who closes first while the other sends loses a request.
IDLE_SECONDS = 75
TICKS = 5  # of uvicorn's, which are a tenth of a second


class GatewayServer(uvicorn.Server):
    """Signals are ours, so that Ctrl-C ends in one line and the heartbeat row goes away.

    With `should_exit` set it takes nobody new, and running answers get `GRACE_SECONDS`. Connections get `patience`.
    """

    def __init__(self, app: ASGIApp, *, accepted_at_once: int = 2048, patience: Patience | None = None) -> None:
        self._patience = patience or Patience()
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
