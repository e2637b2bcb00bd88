"""One engine over HTTP: calls go out in its words, answers come back as they are or as our errors."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import orjson

from ...errors import EngineFailed, EngineUnavailable, InvalidRequest
from ...types import Call, Endpoint
from .answers import error_from, first_event_error
from .connection import AnswerBroken, ConnectionLost, Incoming
from .connections import Connections, Origin, Unreachable

PATHS: Mapping[Endpoint, str] = {
    "chat/completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "tokenize": "/tokenize",
}
MAX_FIRST_EVENT = 64 * 1024
_ERROR_EVENT = b'data: {"error"'
_STREAM_STARTS = (b"data: ", b"event: ", b":")  # ":" is a keep-alive comment
log = logging.getLogger("branchline.vllm")


class EngineSilent(EngineFailed):
    """Connected, but nothing came back in time."""


class EngineBroke(EngineUnavailable):
    """It was given the request, and then broke the connection or went down."""


class EngineStalled(EngineUnavailable):
    """It does nothing; the request was taken from it, for another engine."""


class Address(Protocol):
    """Where an engine is. All three may change while it lives: a managed engine gets a new port with each start."""

    @property
    def url(self) -> str:
        """Without a slash at its end."""

    @property
    def key(self) -> str | None:
        """The bearer key, `None` where the engine asks for none."""

    @property
    def generation(self) -> int:
        """Grows with every start that its keeper knows of."""


@dataclass(frozen=True, slots=True)
class FixedAddress:
    """An engine that somebody else runs."""

    url: str
    key: str | None = None
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Begun:
    """An answer that has begun: its first bytes, and the response the rest comes from, `None` where that is all."""

    first: bytes
    content_type: str
    response: Incoming | None


class EngineClient:
    """Calls raise what `error_from` makes of a refusal, `EngineUnavailable` where the engine cannot be reached,
    `EngineBroke` where it could, `EngineSilent` after the time given, and `EngineFailed` where it breaks off or answers
    garbage. Use it on one event loop, and close it.
    """

    def __init__(self, address: Address, base_id: str, *, connect_seconds: float = 5.0) -> None:
        self._address = address
        self._base_id = base_id
        self._connections = Connections(connect_seconds=connect_seconds)
        self._reached: tuple[str, str | None] = ("", None)
        self._origin = Origin("", 0, tls=False)
        self._own, self._tries = secrets.token_hex(4), itertools.count()  # clients may give one id to two requests
        self._heads: dict[str, bytes] = {}  # for the address as it is now

    async def begin(self, call: Call) -> Begun:
        """Returns when the first bytes of a stream are there, or the whole of an answer that does not stream."""
        response = await self._post(PATHS[call.endpoint], _serialise(call.body, call.engine_name), call.request_id)
        try:
            await self._require_ok(response, call.engine_name)
            if call.stream:
                first = await self._first_piece(response, call.engine_name)
                return Begun(first, response.content_type or "text/event-stream", response)
            body = await _rest(response)
            _document(body)
            return Begun(body, response.content_type or "application/json", None)
        except BaseException:
            response.close()
            raise

    async def ask(self, path: str, body: Mapping[str, object], *, seconds: float, request_id: str) -> dict[str, Any]:
        """The document that answers Branchline's own request."""
        name = str(body.get("model", self._base_id))
        async with _within(seconds):
            response = await self._post(path, _serialise(body, name), request_id)
            with closing(response):
                await self._require_ok(response, name)
                return _document(await _rest(response))

    async def send(self, path: str, body: Mapping[str, object], *, seconds: float) -> tuple[int, bytes]:
        """Status and body of a POST that is no inference."""
        async with _within(seconds):
            response = await self._post(path, json.dumps(body).encode(), "branchline")
            with closing(response):
                return response.status, await _rest(response)

    async def get(self, path: str, *, seconds: float) -> tuple[int, bytes]:
        """Status and body. `EngineUnavailable` is a refused or broken connection, `EngineSilent` says what it is."""
        async with _within(seconds):
            response = await self._exchange(self._head("GET", path) + b"\r\n", b"")
            with closing(response):
                return response.status, await _rest(response)

    async def close(self) -> None:
        """End all connections. Idempotent."""
        await self._connections.close()

    async def _post(self, path: str, body: bytes, request_id: str) -> Incoming:
        """An answer whose status is there."""
        own = f"x-request-id: {request_id}.{self._own}{next(self._tries):x}\r\ncontent-length: {len(body)}\r\n\r\n"
        return await self._exchange(self._head("POST", path) + own.encode("ascii"), body)

    async def _exchange(self, head: bytes, body: bytes) -> Incoming:
        """Errors hold nothing of the address: clients see them."""
        try:
            return await self._connections.send(self._origin, head, body)
        except Unreachable as error:
            raise EngineUnavailable(f"the engine cannot be reached ({error})") from error
        except ConnectionLost as error:
            raise EngineBroke("the engine broke the connection") from error
        except AnswerBroken as error:
            raise EngineFailed("the engine broke off or answered garbage") from error

    async def _require_ok(self, response: Incoming, engine_name: str) -> None:
        if response.status == 200:
            return
        error = error_from(response.status, await _rest(response), engine_name=engine_name, base_id=self._base_id)
        if response.status in (401, 403):
            log.error("%s refuses Branchline's key", self._address.url)
        raise error

    async def _first_piece(self, response: Incoming, engine_name: str) -> bytes:
        first = await _more(response)
        while len(first) < len(_ERROR_EVENT) and (more := await _more(response)):
            first += more
        if first.startswith(_ERROR_EVENT):
            while b"\n\n" not in first and len(first) < MAX_FIRST_EVENT and (more := await _more(response)):
                first += more
            raise first_event_error(first.partition(b"\n\n")[0], engine_name=engine_name, base_id=self._base_id)
        if not first:
            raise EngineFailed("the engine ended the stream before it began")
        if not first.startswith(_STREAM_STARTS):
            raise EngineFailed("the engine answered garbage instead of a stream")
        return first

    def _head(self, method: Literal["GET", "POST"], path: str) -> bytes:
        """What all requests to `path` begin with, made anew where the engine has moved."""
        reached = self._address.url, self._address.key
        if reached != self._reached:
            self._reached, self._origin, self._heads = reached, Origin.of(reached[0]), {}
        head = self._heads.get(path)
        if head is None:
            url, key = reached
            lines = [f"{method} {path} HTTP/1.1", f"host: {url.partition('://')[2]}", "accept-encoding: identity"]
            lines += [] if key is None else [f"authorization: Bearer {key}"]
            lines += ["content-type: application/json"] if method == "POST" else []
            head = self._heads[path] = "".join(f"{line}\r\n" for line in lines).encode("ascii")
        return head


async def _rest(response: Incoming) -> bytes:
    try:
        return await response.read()
    except (ConnectionLost, AnswerBroken) as error:
        raise EngineFailed("the engine broke off or answered garbage") from error


async def _more(response: Incoming) -> bytes:
    try:
        return await response.readany()
    except (ConnectionLost, AnswerBroken) as error:
        raise EngineFailed("the engine broke off or answered garbage") from error


@asynccontextmanager
async def _within(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as error:
        raise EngineSilent(f"the engine did not answer within {seconds:g} s") from error


def _serialise(body: Mapping[str, object], engine_name: str) -> bytes:
    """The body as the engine reads it, with `engine_name` as its model. Raises `InvalidRequest`."""
    named = {**body, "model": engine_name}
    try:
        plain = orjson.dumps(named)
    except TypeError:  # a longer integer than it takes, or what `_serialise_strictly` refuses
        return _serialise_strictly(named)
    return _serialise_strictly(named) if b"null" in plain else plain  # orjson's word for what is not finite, too


def _serialise_strictly(body: Mapping[str, object]) -> bytes:
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        param = _lone_surrogate(body)
        raise InvalidRequest(f"{param} holds half a surrogate pair, which is no text", param=param) from None
    except (ValueError, RecursionError):
        raise InvalidRequest("the request holds a number that is not finite, or nests too deeply") from None


def _lone_surrogate(value: object, path: str = "") -> str | None:
    """Where the first text is that has no UTF-8 form."""
    if isinstance(value, str):
        return path if any("\ud800" <= letter <= "\udfff" for letter in value) else None
    pairs: list[tuple[str, object]] = []
    if isinstance(value, Mapping):
        pairs = [(f"{path}.{key}" if path else str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        pairs = [(f"{path}[{index}]", inner) for index, inner in enumerate(value)]
    return next((found for name, inner in pairs if (found := _lone_surrogate(inner, name))), None)


def _document(body: bytes) -> dict[str, Any]:
    try:
        document = orjson.loads(body)
    except ValueError:
        document = _lenient(body)
    if not isinstance(document, dict):
        raise EngineFailed("the engine answered garbage instead of a JSON object")
    return document


def _lenient(body: bytes) -> object:
    """With NaN and Infinity, which an engine may answer with."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None
