"""A port of its own for operators: what is theirs is answered there and nowhere else, and nothing else is answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.errors import BranchlineError

from ..errors import UrlUnknown
from .table import is_admin

BOTH = frozenset({"/health", "/ready", "/metrics", "/openapi.json"})


@dataclass(frozen=True, slots=True)
class AdminPort:
    """ASGI middleware. It goes by the port that the connection came in on, which no client can say otherwise."""

    app: ASGIApp
    port: int
    refuse: Callable[[BranchlineError], Response]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in BOTH:
            own = scope["server"] is not None and scope["server"][1] == self.port
            if own != is_admin(scope["path"]):
                error = UrlUnknown(f"{scope['method']} {scope['path']!r:.200} is not served here")
                await self.refuse(error)(scope, receive, send)
                return
        await self.app(scope, receive, send)
