"""The inference endpoints, served as plain ASGI: one read, one parse, one answer, no task of their own.

FastAPI serves all other paths; its routing, its dependencies and its responses would cost more than the request.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapters.errors import BranchlineError

from ..dispatch import Answer, Dispatcher, close
from ..errors import MethodNotAllowed, error_object
from ..keys.limits import BYTES_PER_TOKEN, Limits
from ..types import Endpoint
from ..wire import ClientRequest, parse_request
from .client_side import ClientGone, WhileThere, client_of, read_body

ENDPOINTS: Mapping[str, Endpoint] = {
    "/v1/chat/completions": "chat/completions",
    "/v1/completions": "completions",
    "/v1/responses": "responses",
    "/tokenize": "tokenize",
}
State = MutableMapping[str, Any]  # of the ASGI scope
RawHeaders = list[tuple[bytes, bytes]]
log = logging.getLogger("branchline.inference")


@dataclass(frozen=True, slots=True)
class Inference:
    """ASGI middleware that answers `ENDPOINTS` and hands everything else on to `app`.

    `refuse` makes the response to an error. The porch has put `request_id` and `principal` into the scope's state;
    what the limits said is left there as `admission`.
    """

    app: ASGIApp
    dispatcher: Dispatcher
    limits: Limits
    refuse: Callable[[BranchlineError], Response]
    max_body_bytes: int

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = ENDPOINTS.get(scope["path"]) if scope["type"] == "http" else None
        if endpoint is None:
            await self.app(scope, receive, send)
            return
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed(f"{scope['method']} {scope['path']!r} is not served here", allowed="POST")
            await self._serve(endpoint, scope, receive, send)
        except BranchlineError as error:
            await self.refuse(error)(scope, receive, send)

    async def _serve(self, endpoint: Endpoint, scope: Scope, receive: Receive, send: Send) -> None:
        state = scope["state"]
        admission = state["admission"] = self.limits.admit(state["principal"])
        try:
            raw = await read_body(scope, receive, self.max_body_bytes)
            request = parse_request(raw, endpoint)
            admission.prompt_estimate = 0 if endpoint == "tokenize" else len(raw) // BYTES_PER_TOKEN
            if request.stream:
                await self._stream(request, state, client_of(scope), send)
            else:
                await self._whole(request, state, client_of(scope), send)
        except ClientGone:
            admission.ended(admission.prompt_estimate)  # an engine may have read it; later than that, it is counted
            raise
        finally:
            admission.ended()

    async def _whole(self, request: ClientRequest, state: State, client: WhileThere, send: Send) -> None:
        with client:
            answer = await self._answer(request, state)
            try:
                client.require()
                content = b"".join([piece async for piece in answer.reply.body])
            finally:
                await close(answer.reply.body)
        length = (b"content-length", b"%d" % len(content))
        await send({"type": "http.response.start", "status": 200, "headers": [length, *_headers(answer)]})
        await send({"type": "http.response.body", "body": content})

    async def _stream(self, request: ClientRequest, state: State, client: WhileThere, send: Send) -> None:
        """A stream cut short ends with an OpenAI error event that carries the request id."""
        begun = False
        try:
            with client:
                answer = await self._answer(request, state)
                try:
                    client.require()
                    await send({"type": "http.response.start", "status": 200, "headers": _headers(answer)})
                    begun = True
                    await _pass_on(answer.reply.body, send, state["request_id"])
                finally:
                    await close(answer.reply.body)
        except ClientGone:
            if not begun:
                raise
        else:
            await send({"type": "http.response.body"})

    async def _answer(self, request: ClientRequest, state: State) -> Answer:
        return await self.dispatcher.answer(request, state["request_id"], state["principal"], state["admission"])


async def _pass_on(body: AsyncIterator[bytes], send: Send, request_id: str) -> None:
    try:
        async for piece in body:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
    except Exception as error:
        if not isinstance(error, BranchlineError):
            log.exception("the stream of %s failed", request_id)
        document = json.dumps({**error_object(error), "request_id": request_id})
        await send({"type": "http.response.body", "body": f"data: {document}\n\n".encode(), "more_body": True})


def _headers(answer: Answer) -> RawHeaders:
    decision = answer.decision
    headers = [
        (b"content-type", answer.reply.content_type.encode("latin-1")),
        (b"x-branchline-stage", decision.stage.encode()),
        (b"x-branchline-reason", decision.reason.encode()),
        (b"x-branchline-serial", b"%d" % answer.serial),
        (b"x-branchline-overhead-ms", b"%.3f" % (answer.overhead_seconds * 1000)),
    ]
    if decision.route is not None and decision.reason != "not_permitted":  # its name is not for this key
        headers.append((b"x-branchline-route", decision.route.encode()))
    if decision.version is not None:
        headers.append((b"x-branchline-version", b"%d" % decision.version))
    if decision.confidence is not None:
        headers.append((b"x-branchline-confidence", b"%.4f" % decision.confidence))
    return headers
