"""One tree of errors for the data plane, and the one table that maps errors to the wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapters.errors import (
    AdaptersError,
    AlreadyExists,
    BadAdapter,
    BadInput,
    BranchlineError,
    Conflict,
    GateRefused,
    InvalidName,
    NotFound,
    QueueFull,
    Refused,
    RegistryUnavailable,
    StoreCorrupted,
)


class RouterError(BranchlineError):
    """Base of every error this package raises on purpose.

    `message` is shown to the client: it holds no prompt, no path and no key. `param` names the request
    field at fault. `code` overrides the table's code. `hint` is for the operator's terminal.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.param = param
        self.code = code


class InvalidRequest(RouterError):
    """The request cannot be served as it stands: malformed, unsupported or out of range."""


class BodyTooLarge(RouterError):
    """The body is over the size limit."""


class Unauthorized(RouterError):
    """No key, or a wrong one."""


class Forbidden(RouterError):
    """A key without the right, or a foreign Origin or Host."""


class ModelNotFound(RouterError):
    """`model` names nothing that is served."""


class UrlUnknown(RouterError):
    """A path that is not served, or not on this port."""


class RouteDisabled(RouterError):
    """A pinned version of a disabled route."""


class AdapterUnavailable(RouterError):
    """The version cannot be served now: not resident, not loadable, or not proved to be applied."""


class NotApplied(AdapterUnavailable):
    """The engine answers for the version, but not with what the version is: it changes nothing, or the wrong thing."""


class MethodNotAllowed(RouterError):
    """The path is served, but not by this method; `headers` name the one that it is."""

    def __init__(self, message: str, *, allowed: str, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.headers = {"allow": allowed}


class RateLimited(RouterError):
    """A key is at one of its limits. `headers` say which, and when to come again."""

    def __init__(self, message: str, *, hint: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.headers = dict(headers or {})


class EngineOverloaded(RouterError):
    """The engine or a cap takes no further request now."""


class FeedbackOverloaded(RouterError):
    """More feedback comes in than can be written."""


class AdminOverloaded(RouterError):
    """More is asked of the admin API than it works on at a time."""


class PreconditionFailed(RouterError):
    """What is asked for was decided on a state that is no more; `headers` carry the ETag of what is now."""

    def __init__(self, message: str, *, hint: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message, hint=hint)
        self.headers = dict(headers or {})


class KeyReused(RouterError):
    """An Idempotency-Key that stood for another request."""


class StillRunning(RouterError):
    """The request of this Idempotency-Key is being worked on."""


class EngineFailed(RouterError):
    """The engine died, hung or answered garbage."""


class EngineUnavailable(EngineFailed):
    """No engine can take the request now: starting, restarting or down."""


class ClassifierInvalid(RouterError):
    """A classifier artifact that cannot be read or does not match its digest."""


class EncoderUnavailable(RouterError):
    """No encoder, or not the one that is needed: not given, not readable, not exportable, or of another digest."""


class EncoderOverloaded(RouterError):
    """More texts wait for the encoder than it takes."""


class WorkersFailed(RouterError):
    """Worker processes end as soon as they are started: the gateway cannot go on."""


class ConfigInvalid(RouterError):
    """Settings that cannot be served with; the message lists every problem."""


@dataclass(frozen=True, slots=True)
class Wire:
    """How an error looks outside: HTTP status, OpenAI `type` and default `code`."""

    status: int
    type: str
    code: str | None


TABLE: dict[type[Exception], Wire] = {
    InvalidRequest: Wire(400, "invalid_request_error", None),
    BodyTooLarge: Wire(413, "invalid_request_error", "request_too_large"),
    Unauthorized: Wire(401, "invalid_request_error", "invalid_api_key"),
    Forbidden: Wire(403, "invalid_request_error", "forbidden"),
    MethodNotAllowed: Wire(405, "invalid_request_error", "method_not_allowed"),
    ModelNotFound: Wire(404, "invalid_request_error", "model_not_found"),
    UrlUnknown: Wire(404, "invalid_request_error", "unknown_url"),
    RouteDisabled: Wire(409, "invalid_request_error", "route_disabled"),
    AdapterUnavailable: Wire(503, "server_error", "adapter_unavailable"),
    NotApplied: Wire(503, "server_error", "adapter_unavailable"),
    RateLimited: Wire(429, "rate_limit_error", "rate_limit_exceeded"),
    EngineOverloaded: Wire(429, "rate_limit_error", "engine_overloaded"),
    FeedbackOverloaded: Wire(429, "rate_limit_error", "feedback_overloaded"),
    AdminOverloaded: Wire(429, "rate_limit_error", "admin_overloaded"),
    PreconditionFailed: Wire(412, "invalid_request_error", "precondition_failed"),
    KeyReused: Wire(422, "invalid_request_error", "idempotency_key_reused"),
    StillRunning: Wire(409, "invalid_request_error", "still_running"),
    EngineFailed: Wire(502, "server_error", "engine_failed"),
    EngineUnavailable: Wire(503, "server_error", "engine_unavailable"),
    ClassifierInvalid: Wire(500, "server_error", "classifier_invalid"),
    EncoderUnavailable: Wire(503, "server_error", "encoder_unavailable"),
    EncoderOverloaded: Wire(429, "rate_limit_error", "encoder_overloaded"),
    WorkersFailed: Wire(500, "server_error", "workers_failed"),
    ConfigInvalid: Wire(500, "server_error", "config_invalid"),
    RouterError: Wire(500, "server_error", "internal_error"),
    InvalidName: Wire(400, "invalid_request_error", "invalid_name"),
    NotFound: Wire(404, "invalid_request_error", "not_found"),
    AlreadyExists: Wire(409, "invalid_request_error", "already_exists"),
    Conflict: Wire(409, "invalid_request_error", "conflict"),
    Refused: Wire(409, "invalid_request_error", "refused"),
    QueueFull: Wire(429, "rate_limit_error", "queue_full"),
    GateRefused: Wire(409, "invalid_request_error", "gate_refused"),
    BadAdapter: Wire(400, "invalid_request_error", "bad_adapter"),
    BadInput: Wire(400, "invalid_request_error", "bad_input"),
    StoreCorrupted: Wire(500, "server_error", "store_corrupted"),
    RegistryUnavailable: Wire(503, "server_error", "registry_unavailable"),
    AdaptersError: Wire(500, "server_error", "internal_error"),
}
INTERNAL = Wire(500, "server_error", "internal_error")


def wire_for(error: BaseException) -> Wire:
    """The most specific entry for `error`; unknown exceptions are internal errors."""
    return next((TABLE[kind] for kind in type(error).__mro__ if kind in TABLE), INTERNAL)


def error_object(error: BaseException) -> dict[str, dict[str, str | None]]:
    """The OpenAI error object. Unknown exceptions show nothing of themselves."""
    wire = wire_for(error)
    known = isinstance(error, (RouterError, AdaptersError))
    message = error.message if isinstance(error, (RouterError, AdaptersError)) else "internal error"
    code = (error.code if isinstance(error, RouterError) else None) or wire.code
    param = error.param if isinstance(error, RouterError) else None
    return {
        "error": {"message": message if known else "internal error", "type": wire.type, "param": param, "code": code}
    }
