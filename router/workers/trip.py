"""Errors between parent and workers: by the name of their class, with what a client and an operator are told."""

from __future__ import annotations

from collections.abc import Callable

from adapters.errors import AdaptersError

from .. import errors

Document = dict[str, str | None]


def error_document(error: Exception) -> Document:
    """What `error_from` makes the same error of. One that nobody raises on purpose tells nothing of itself."""
    kind = next(kind for kind in type(error).__mro__ if kind in errors.TABLE or kind is Exception)
    if not isinstance(error, (errors.RouterError, AdaptersError)):
        return {"kind": errors.RouterError.__name__, "message": "internal error", "hint": ""}
    document: Document = {"kind": kind.__name__, "message": error.message, "hint": error.hint}
    if isinstance(error, errors.RouterError):
        document |= {"param": error.param, "code": error.code}
    return document


def error_from(document: Document) -> Exception:
    """An error of the same class, or of the nearest that takes no more than a message."""
    kind = next((one for one in errors.TABLE if one.__name__ == document["kind"]), errors.RouterError)
    message, hint = document["message"] or "", document["hint"] or ""
    more = {"param": document.get("param"), "code": document.get("code")} if _is_of_router(kind) else {}
    make: Callable[..., Exception] = kind
    try:
        return make(message, hint=hint, **more)
    except TypeError:
        nearest: Callable[..., Exception] = errors.RouterError if more else AdaptersError
        return nearest(message, hint=hint, **more)


def _is_of_router(kind: type[Exception]) -> bool:
    return issubclass(kind, errors.RouterError)
