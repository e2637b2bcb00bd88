"""What a request of the admin API says, read and checked at the edge: who asks, headers, query, body."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from starlette.datastructures import Headers
from starlette.requests import Request

from adapters.errors import NotFound
from adapters.exemplars import BASE_LABEL
from adapters.rows import is_unicode
from adapters.types import parse_route_name

from ..errors import Forbidden, InvalidRequest, PreconditionFailed, Unauthorized
from ..http.client_side import read_body
from ..keys.principal import ANONYMOUS, Principal
from ..wire import parse_object
from .operation import Operation

MAX_REASON_CHARACTERS = 4096
FORCE_HEADER = "x-branchline-force"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_ETAG = re.compile(r'"([1-9][0-9]{0,8})"')
_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_MAX_NAMED = 5


def require_right(principal: Principal, operation: Operation, route: str) -> None:
    """Raise `Unauthorized` without a key, also where others need none, and `Forbidden` where the key may not."""
    if principal is ANONYMOUS:
        raise Unauthorized(
            "the admin API needs a key; send 'Authorization: Bearer KEY'", hint="make one with `branchline key create`"
        )
    if not principal.may(operation.role):
        raise Forbidden(f"this key has the role {principal.role!r}, expected {operation.role!r}", code="not_permitted")
    if principal.routes is not None and not (operation.of_route and principal.may_use(route)):
        raise Forbidden("this key may act on its own routes only", code="not_permitted")


def read_route(operation: Operation, given: str) -> str:
    """The route that the path names, empty where it names none. Raises `InvalidName`."""
    if not operation.of_route or (operation.name == "forget_route" and given == BASE_LABEL):
        return given
    return parse_route_name(given)


def read_number(given: str | None) -> int:
    """The number that the path names, 0 where it names none. Raises `NotFound` for what can be none."""
    if given is None:
        return 0
    if not _NUMBER.fullmatch(given):
        raise NotFound(f"no version {given!r:.40}", hint="versions are numbered from 1")
    return int(given)


def read_expected(operation: Operation, headers: Headers) -> int | None:
    """The revision of `If-Match`. Raises `PreconditionFailed` for an ETag that no revision has."""
    given = headers.get("if-match")
    if given is None:
        return None
    if not operation.conditional:
        raise InvalidRequest(f"If-Match means nothing to {operation.method} here", param="if-match")
    if given.strip() == "*":
        return None
    found = _ETAG.fullmatch(given.strip())
    if found is None:
        raise PreconditionFailed(f'If-Match is {given!r:.80}, expected one ETag of the route, like "3"')
    return int(found[1])


def read_repeat_key(operation: Operation, headers: Headers) -> str | None:
    """The `Idempotency-Key`. Raises `InvalidRequest` where it cannot be kept."""
    given = headers.get("idempotency-key")
    if given is None or not operation.writes:
        return None
    if not _KEY.fullmatch(given):
        raise InvalidRequest("Idempotency-Key must be 1 to 200 printable ASCII characters", param="idempotency-key")
    return given


def read_force(headers: Headers) -> str | None:
    """The reason of `x-branchline-force`."""
    given = headers.get(FORCE_HEADER)
    if given is not None and not (given.strip() and given.isprintable() and len(given) <= MAX_REASON_CHARACTERS):
        raise InvalidRequest(f"{FORCE_HEADER} must give a reason", param=FORCE_HEADER)
    return given


def read_query(operation: Operation, request: Request) -> BaseModel:
    return _validated(operation.query, dict(request.query_params))


async def read_raw(request: Request, limit: int) -> bytes:
    """The body; none, without a content type, is an empty object."""
    headers = request.headers
    declared = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
    if not declared and "content-type" not in headers:
        return b"{}"
    return await read_body(request.scope, request.receive, limit)


def parse_body(operation: Operation, raw: bytes) -> BaseModel | None:
    return None if operation.body is None else _validated(operation.body, parse_object(raw))


def _validated(model: type[BaseModel], values: Mapping[str, Any]) -> BaseModel:
    """Raises `InvalidRequest` that names every field at fault, without what it holds."""
    try:
        found = model.model_validate(values)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        said = [f"{_place(one['loc'])}: {one['msg']}" for one in problems[:_MAX_NAMED]]
        more = len(problems) - len(said)
        raise InvalidRequest(
            "; ".join(said) + (f"; and {more} more" if more > 0 else ""), param=_place(problems[0]["loc"])
        ) from None
    text = json.dumps(values, ensure_ascii=False)
    if "\\u0000" in text or not is_unicode(text):  # no database keeps them
        raise InvalidRequest("a text holds a NUL character, or half a surrogate pair")
    return found


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(one) for one in location)[:80] or "body"
