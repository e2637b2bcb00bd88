"""The HTTP server around the app: uvicorn, with signals left to the gateway and a grace time for running answers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

GRACE_SECONDS = 15


class GatewayServer(uvicorn.Server):
    """Signals are ours, so that Ctrl-C ends in one line and the heartbeat row goes away.

    With `should_exit` set it takes nobody new, and running answers get `GRACE_SECONDS`.
    """

    def __init__(self, app: FastAPI, *, accepted_at_once: int = 2048) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                lifespan="off",
                timeout_graceful_shutdown=GRACE_SECONDS,
                backlog=accepted_at_once,
            )
        )

    def drain(self) -> bool:
        """Begin to stop; whether there was anything to stop that had not begun to."""
        if not self.started or self.should_exit:
            return False
        self.should_exit = True
        return True

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield
