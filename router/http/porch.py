"""The porch: request ids, foreign pages and keys, before any handler. A plain ASGI middleware: it costs no task."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.errors import BranchlineError

from ..auth import Gatekeeper
from ..keys.limits import Admission

PUBLIC_PATHS = frozenset({"/health", "/ready"})
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class Porch:
    """Lets in http requests of this site with a key (`PUBLIC_PATHS` without); each gets a request id.

    A handler finds in `scope["state"]` who asks (`principal`), and leaves there what the limits said (`admission`):
    every answer to a request that was let in tells how much is left.
    """

    def __init__(self, app: ASGIApp, gatekeeper: Gatekeeper, refuse: Callable[[BranchlineError], Response]) -> None:
        self._app = app
        self._gatekeeper = gatekeeper
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Of two that are alike the first counts, as everywhere in Starlette.
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{secrets.token_hex(16)}"
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                told = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
                admission: Admission | None = scope["state"].get("admission")
                if admission is not None:
                    told += [(name.encode(), value.encode()) for name, value in admission.headers().items()]
                message["headers"] = told
            await send(message)

        try:
            self._gatekeeper.require_own_site(headers)
            let_in = self._gatekeeper.visitor if scope["path"] in PUBLIC_PATHS else self._gatekeeper.principal
            scope["state"]["principal"] = let_in(headers)
        except BranchlineError as error:
            await self._refuse(error)(scope, receive, send_with_id)
            return
        await self._app(scope, receive, send_with_id)
