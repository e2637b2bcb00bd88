"""create_app(parts): the HTTP surface, handlers of a few lines. Every error is an OpenAI error with a request id."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from adapters.errors import BranchlineError

from .admin_api.openapi import admin_section
from .admin_api.port import AdminPort
from .admin_api.surface import Admin, admin_routes
from .auth import Gatekeeper
from .backends.base import Serving
from .dispatch import Dispatcher
from .errors import MethodNotAllowed, PreconditionFailed, RateLimited, error_object, wire_for
from .following.standing import Standing
from .http.admin import engine_routes, is_operator, require_operator
from .http.client_side import read_body
from .http.feedback import MAX_BODY_BYTES, Feedback, parse_proposal
from .http.inference import Inference
from .http.listing import model_list
from .http.openapi import PATH as OPENAPI
from .http.openapi import openapi_document
from .http.openapi_gateway import GATEWAY
from .http.openapi_inference import INFERENCE
from .http.porch import Porch
from .keys.key_metrics import KeyMetrics
from .keys.limits import Limits
from .telemetry import Telemetry


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
    admin: Admin | None = None


def create_app(parts: Parts) -> FastAPI:
    """The gateway. The caller starts and stops `parts.backend` and `parts.catalog`."""
    app = FastAPI(title="Branchline", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    _add_pages(app, parts)
    if parts.feedback is not None:
        _add_feedback(app, parts.feedback, parts.limits)
    app.include_router(engine_routes(parts.backend))
    if parts.admin is not None:
        app.include_router(admin_routes(parts.admin, parts.limits, parts.max_body_bytes))
    parts.telemetry.registry.register(KeyMetrics(parts.limits))
    _add_errors(app, parts)
    refuse = partial(_error_response, parts=parts)
    app.add_middleware(
        Inference,
        dispatcher=parts.dispatcher,
        limits=parts.limits,
        refuse=refuse,
        max_body_bytes=parts.max_body_bytes,
    )
    if parts.admin is not None and parts.admin.port is not None:
        app.add_middleware(AdminPort, port=parts.admin.port, refuse=refuse)
    app.add_middleware(Porch, gatekeeper=parts.gatekeeper, refuse=refuse)
    return app


def _add_pages(app: FastAPI, parts: Parts) -> None:
    @app.get("/v1/models")
    async def models(request: Request) -> JSONResponse:
        return JSONResponse(model_list(parts.catalog.snapshot, request.state.principal.routes))

    @app.get("/health")
    async def health() -> JSONResponse:
        return JSONResponse({"status": "ok"})

    @app.get("/ready")
    async def ready(request: Request) -> JSONResponse:
        is_ready = await parts.backend.ready()
        document = {  # open to all: neither addresses nor routes
            "ready": is_ready,
            "engines": Counter(engine.state for engine in parts.backend.engines),
            "registry_stale_seconds": round(parts.catalog.stale_seconds, 1),
        }
        if is_operator(request.state.principal):
            document["warming"] = parts.catalog.warming
            document["problems"] = {"routes": parts.catalog.problems, "classifier": parts.catalog.classifier_problem}
        return JSONResponse(document, 200 if is_ready else 503)

    document = openapi_document(GATEWAY, INFERENCE, *([admin_section()] if parts.admin is not None else []))

    @app.get(OPENAPI)
    async def openapi() -> JSONResponse:
        return JSONResponse(document)

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
            raw = await read_body(request.scope, request.receive, MAX_BODY_BYTES)
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
        response.headers["x-request-id"] = request.state.request_id  # it is sent from beyond the porch
        if hasattr(request.state, "admission"):
            response.headers.update(request.state.admission.headers())
        return response


def _error_response(error: Exception, parts: Parts) -> Response:
    document = error_object(error)
    parts.telemetry.refused(document["error"]["code"] or "invalid_request")
    wire = wire_for(error)
    headers: dict[str, str] | None = {"retry-after": "1"} if wire.status in (429, 503) else None
    if isinstance(error, (MethodNotAllowed, PreconditionFailed, RateLimited)):
        headers = error.headers
    if wire.status == 401:
        headers = {"www-authenticate": "Bearer"}
    return JSONResponse(document, wire.status, headers=headers)
