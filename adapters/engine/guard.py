"""The guard in front of vLLM's HTTP server: everything behind the key, and only what a gateway needs.

`vllm serve … --middleware adapters.engine.guard.Guard`, with the key in `VLLM_API_KEY`. It speaks plain ASGI.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from .facts import Facts

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Message, Receive, Send], Awaitable[None]]

FACTS = ("GET", "/branchline")
OPEN = frozenset(
    {
        FACTS,
        ("GET", "/health"),
        ("GET", "/metrics"),
        ("GET", "/version"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/responses"),
        ("POST", "/tokenize"),
    }
)
_POLICY_VIOLATION = 1008  # RFC 6455
_SAGEMAKER = b"x-amzn-sagemaker-"  # these headers can name an adapter or a session


class Guard:
    """Lets through the exact pairs of `OPEN`, with the key; 401 without it, 404 for the rest, no websocket at all.

    Raises `RuntimeError` where there is no key: vLLM then does not start.
    """

    def __init__(self, app: Asgi) -> None:
        key = os.environ.get("VLLM_API_KEY")
        if not key:
            raise RuntimeError("Branchline's guard needs the engine's key: set VLLM_API_KEY in its environment")
        self._app = app
        self._key = hashlib.sha256(key.encode()).digest()
        self._facts = Facts()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": "websockets are closed"})
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Message, receive: Receive, send: Send) -> None:
        if not self._has_key(scope["headers"]):
            await _send_json(send, 401, _error("Invalid or missing API key", "invalid_api_key"))
        elif not _is_open(scope):
            await _send_json(send, 404, _error("This method and path are closed on this engine", "not_found"))
        elif (scope["method"], scope["path"]) == FACTS:
            state = getattr(scope.get("app"), "state", None)
            await _send_json(send, 200, await asyncio.to_thread(self._facts.read, state))
        else:
            await self._app(_without_sagemaker(scope), receive, send)

    def _has_key(self, headers: list[tuple[bytes, bytes]]) -> bool:
        given = [value for name, value in headers if name.lower() == b"authorization"]
        if len(given) != 1:
            return False
        scheme, _, key = given[0].partition(b" ")
        return scheme.lower() == b"bearer" and hmac.compare_digest(hashlib.sha256(key).digest(), self._key)


def _is_open(scope: Message) -> bool:
    """Whether path and method are exactly an open pair, as sent: nothing encoded, nothing to be stripped."""
    path: str = scope["path"]
    if (scope["method"], path) not in OPEN or scope.get("root_path"):
        return False
    return scope.get("raw_path") in (None, path.encode())


def _without_sagemaker(scope: Message) -> Message:
    kept = [(name, value) for name, value in scope["headers"] if not name.lower().startswith(_SAGEMAKER)]
    return scope if len(kept) == len(scope["headers"]) else {**scope, "headers": kept}


def _error(message: str, code: str) -> dict[str, object]:
    return {"error": {"message": message, "type": "invalid_request_error", "param": None, "code": code}}


async def _send_json(send: Send, status: int, document: dict[str, object]) -> None:
    body = json.dumps(document).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
