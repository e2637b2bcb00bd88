"""create_app(parts): the HTTP surface, handlers of a few lines. Every error is an OpenAI error with a request id."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import TypeVar

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from adapters.errors import BranchlineError

from .admin import engine_routes, require_operator
from .auth import Gatekeeper
from .backends.base import Serving
from .dispatch import Answer, Dispatcher, close
from .errors import BodyTooLarge, InvalidRequest, RateLimited, error_object, wire_for
from .feedback import MAX_BODY_BYTES, Feedback, parse_proposal
from .key_metrics import KeyMetrics
from .limits import BYTES_PER_TOKEN, Limits
from .listing import model_list
from .porch import Porch
from .standing import Standing
from .telemetry import Telemetry
from .types import Endpoint
from .wire import parse_request

Result = TypeVar("Result")
log = logging.getLogger("branchline.app")


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything an app is made of, built in one place (`cli.py`, or a test).

    `metrics_page` gives the metrics of all workers where this process is one of several.
    """

    catalog: Standing
    backend: Serving
    dispatcher: Dispatcher
    gatekeeper: Gatekeeper
    telemetry: Telemetry
    max_body_bytes: int = 8 * 1024 * 1024
    feedback: Feedback | None = None
    metrics_page: Callable[[], Awaitable[bytes]] | None = None
    limits: Limits = field(default_factory=Limits)


def create_app(parts: Parts) -> FastAPI:
    """The gateway. The caller starts and stops `parts.backend` and `parts.catalog`."""
    app = FastAPI(title="Branchline", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    _add_inference(app, parts)
    _add_pages(app, parts)
    if parts.feedback is not None:
        _add_feedback(app, parts.feedback, parts.limits)
    app.include_router(engine_routes(parts.backend))
    parts.telemetry.registry.register(KeyMetrics(parts.limits))
    _add_errors(app, parts)
    app.add_middleware(Porch, gatekeeper=parts.gatekeeper, refuse=lambda error: _error_response(error, parts))
    return app


def _add_inference(app: FastAPI, parts: Parts) -> None:
    async def infer(request: Request, endpoint: Endpoint) -> Response:
        principal = request.state.principal
        admission = request.state.admission = parts.limits.admit(principal)
        try:
            raw = await _read_body(request, parts.max_body_bytes)
            parsed = parse_request(raw, endpoint)
            admission.prompt_estimate = 0 if endpoint == "tokenize" else len(raw) // BYTES_PER_TOKEN
            work = parts.dispatcher.answer(parsed, request.state.request_id, principal, admission)
            answer = await _until_gone(request, work)
        except BaseException:
            admission.ended()
            raise
        if parsed.stream:
            return _EventStream(answer, request.state.request_id)
        content = await _until_gone(request, _collect(answer.reply.body))
        return Response(content, headers=_headers(answer), media_type=answer.reply.content_type)

    @app.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await infer(request, "chat/completions")

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await infer(request, "completions")

    @app.post("/v1/responses")
    async def responses(request: Request) -> Response:
        return await infer(request, "responses")

    @app.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        return await infer(request, "tokenize")


def _add_pages(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        return JSONResponse(model_list(parts.catalog.snapshot, request.state.principal.routes))

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready() -> JSONResponse:
        is_ready = await parts.backend.ready()
        document = {
            "ready": is_ready,
            "warming": parts.catalog.warming,
            "problems": {"routes": parts.catalog.problems, "classifier": parts.catalog.classifier_problem},
            "engines": Counter(engine.state for engine in parts.backend.engines),  # open to all: no addresses
            "registry_stale_seconds": round(parts.catalog.stale_seconds, 1),
        }
        return JSONResponse(document, 200 if is_ready else 503)

    @app.get("/metrics", dependencies=[Depends(require_operator)])
    async def metrics() -> Response:
        render = parts.metrics_page
        page = parts.telemetry.render(parts.catalog) if render is None else await render()
        return Response(page, media_type="text/plain; version=0.0.4")


def _add_feedback(app: FastAPI, feedback: Feedback, limits: Limits) -> None:
    @app.post("/v1/feedback")
    async def propose(request: Request) -> JSONResponse:
        admission = request.state.admission = limits.admit(request.state.principal)
        try:
            raw = await _read_body(request, MAX_BODY_BYTES)
            await feedback.queue(parse_proposal(raw, request.state.principal))
        finally:
            admission.ended()
        return JSONResponse({"object": "feedback", "status": "queued"}, 202)


def _add_errors(app: FastAPI, parts: Parts) -> None:
    @app.exception_handler(BranchlineError)
    async def known(_request: Request, error: BranchlineError) -> Response:
        return _error_response(error, parts)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code, "http_error")
        parts.telemetry.refused(code)
        message = f"{request.method} {request.url.path!r:.200} is not served here"
        document = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        return JSONResponse({"error": document}, error.status_code, headers=error.headers)

    @app.exception_handler(Exception)
    async def unknown(request: Request, error: Exception) -> Response:
        response = _error_response(error, parts)
        response.headers["x-request-id"] = request.state.request_id
        return response


def _error_response(error: Exception, parts: Parts) -> Response:
    document = error_object(error)
    parts.telemetry.refused(document["error"]["code"] or "invalid_request")
    wire = wire_for(error)
    headers: dict[str, str] | None = {"retry-after": "1"} if wire.status in (429, 503) else None
    if isinstance(error, RateLimited):
        headers = error.headers
    if wire.status == 401:
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse(document, wire.status, headers=headers)


async def _read_body(request: Request, limit: int) -> bytes:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise InvalidRequest(f"content-type is {content_type!r:.80}, expected application/json")
    pieces: list[bytes] = []
    size = 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > limit:
                raise BodyTooLarge(f"the body is over {limit} bytes")
            pieces.append(piece)
    except ClientDisconnect:
        raise _client_gone() from None
    return b"".join(pieces)


async def _collect(body: AsyncIterator[bytes]) -> bytes:
    try:
        return b"".join([piece async for piece in body])
    finally:
        await close(body)


async def _until_gone(request: Request, work: Coroutine[object, object, Result]) -> Result:
    """Finish `work`, unless the client goes away first: then it is cancelled, which stops the engine."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise _client_gone()
    except BaseException:
        task.cancel()
        (left,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(left, Answer):  # it was opened in the same moment
            await close(left.reply.body)
        raise
    finally:
        gone.cancel()
    return task.result()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


def _client_gone() -> InvalidRequest:
    return InvalidRequest("the client closed the connection", code="client_closed_request")


class _EventStream(StreamingResponse):
    """A streamed answer. It closes the engine's reply whatever ends it, also before the first byte."""

    def __init__(self, answer: Answer, request_id: str) -> None:
        body = answer.reply.body
        super().__init__(
            _with_last_words(body, request_id), headers=_headers(answer), media_type=answer.reply.content_type
        )
        self._reply_body = body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await close(self._reply_body)


async def _with_last_words(body: AsyncIterator[bytes], request_id: str) -> AsyncIterator[bytes]:
    """A stream cut short ends with an OpenAI error event that carries the request id."""
    try:
        async for piece in body:
            yield piece
    except Exception as error:
        if not isinstance(error, BranchlineError):
            log.exception("the stream of %s failed", request_id)
        document = error_object(error)
        yield f"data: {json.dumps({**document, 'request_id': request_id})}\n\n".encode()


def _headers(answer: Answer) -> dict[str, str]:
    decision = answer.decision
    headers = {
        "x-branchline-stage": decision.stage,
        "x-branchline-reason": decision.reason,
        "x-branchline-serial": str(answer.serial),
        "x-branchline-overhead-ms": f"{answer.overhead_seconds * 1000:.3f}",
    }
    if decision.route is not None and decision.reason != "not_permitted":  # its name is not for this key
        headers["x-branchline-route"] = decision.route
    if decision.version is not None:
        headers["x-branchline-version"] = str(decision.version)
    if decision.confidence is not None:
        headers["x-branchline-confidence"] = f"{decision.confidence:.4f}"
    return headers
