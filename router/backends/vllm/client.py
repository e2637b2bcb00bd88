"""One engine over HTTP: calls go out in its words, answers come back as they are or as our errors."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
from aiohttp.http import HttpProcessingError

from ...errors import EngineFailed, EngineUnavailable, InvalidRequest
from ...types import Call, Endpoint
from .answers import error_from, first_event_error

PATHS: Mapping[Endpoint, str] = {
    "chat/completions": "/v1/chat/completions",
    "completions": "/v1/completions",
    "responses": "/v1/responses",
    "tokenize": "/tokenize",
}
KEEP_ALIVE_SECONDS = 4.0  # less than the 5 s after which vLLM closes an idle connection
MAX_FIRST_EVENT = 64 * 1024
_ERROR_EVENT = b'data: {"error"'
_STREAM_STARTS = (b"data: ", b"event: ", b":")  # ":" is a keep-alive comment
log = logging.getLogger("branchline.vllm")


class EngineSilent(EngineFailed):
    """Connected, but nothing came back in time."""


class EngineBroke(EngineUnavailable):
    """It was given the request, and then broke the connection or went down."""


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
    response: aiohttp.ClientResponse | None


class EngineClient:
    """Calls raise what `error_from` makes of a refusal, `EngineUnavailable` where the engine cannot be reached,
    `EngineBroke` where it could, `EngineSilent` after the time given, and `EngineFailed` where it breaks off or answers
    garbage. Use it on one event loop, and close it.
    """

    def __init__(self, address: Address, base_id: str, *, connect_seconds: float = 5.0) -> None:
        self._address = address
        self._base_id = base_id
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds)
        self._session: aiohttp.ClientSession | None = None

    async def begin(self, call: Call) -> Begun:
        """Returns when the first bytes of a stream are there, or the whole of an answer that does not stream."""
        response = await self._post(PATHS[call.endpoint], _serialise(call.body, call.engine_name), call.request_id)
        try:
            with _as_ours():
                await self._require_ok(response, call.engine_name)
                if call.stream:
                    first = await self._first_piece(response, call.engine_name)
                    return Begun(first, response.headers.get("content-type", "text/event-stream"), response)
                body = await response.read()
            _document(body)
            return Begun(body, response.headers.get("content-type", "application/json"), None)
        except BaseException:
            response.close()
            raise

    async def ask(self, path: str, body: Mapping[str, object], *, seconds: float, request_id: str) -> dict[str, Any]:
        """The document that answers Branchline's own request."""
        name = str(body.get("model", self._base_id))
        with _within(seconds):
            async with asyncio.timeout(seconds):
                response = await self._post(path, _serialise(body, name), request_id)
                with _as_ours():
                    async with response:
                        await self._require_ok(response, name)
                        return _document(await response.read())

    async def send(self, path: str, body: Mapping[str, object], *, seconds: float) -> tuple[int, bytes]:
        """Status and body of a POST that is no inference."""
        with _within(seconds):
            async with asyncio.timeout(seconds):
                response = await self._post(path, json.dumps(body).encode(), "branchline")
                with _as_ours():
                    async with response:
                        return response.status, await response.read()

    async def get(self, path: str, *, seconds: float) -> tuple[int, bytes]:
        """Status and body. `EngineUnavailable` is a refused or broken connection, `EngineSilent` says what it is."""
        patient = aiohttp.ClientTimeout(total=None)  # so that being slow is told apart from being refused
        with _within(seconds):
            async with asyncio.timeout(seconds):
                with _as_ours():
                    async with self._open().get(
                        self._address.url + path, headers=self._headers(), allow_redirects=False, timeout=patient
                    ) as response:
                        return response.status, await response.read()

    async def close(self) -> None:
        """End all connections. Idempotent."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _post(self, path: str, body: bytes, request_id: str) -> aiohttp.ClientResponse:
        """The response's head. A kept connection that the engine closed meanwhile is tried once more."""
        headers = {
            **self._headers(),
            "content-type": "application/json",
            "x-request-id": f"{request_id}.{secrets.token_hex(4)}",
        }
        session, url = self._open(), self._address.url + path
        with _as_ours():
            try:
                return await session.post(url, data=body, headers=headers, allow_redirects=False)
            except aiohttp.ClientConnectorError:
                raise
            except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                return await session.post(url, data=body, headers=headers, allow_redirects=False)

    async def _require_ok(self, response: aiohttp.ClientResponse, engine_name: str) -> None:
        if response.status == 200:
            return
        error = error_from(response.status, await response.read(), engine_name=engine_name, base_id=self._base_id)
        if response.status in (401, 403):
            log.error("%s refuses Branchline's key", self._address.url)
        raise error

    async def _first_piece(self, response: aiohttp.ClientResponse, engine_name: str) -> bytes:
        content = response.content
        first = await content.readany()
        while len(first) < len(_ERROR_EVENT) and not content.at_eof():
            first += await content.readany()
        if first.startswith(_ERROR_EVENT):
            while b"\n\n" not in first and len(first) < MAX_FIRST_EVENT and not content.at_eof():
                first += await content.readany()
            raise first_event_error(first.partition(b"\n\n")[0], engine_name=engine_name, base_id=self._base_id)
        if not first:
            raise EngineFailed("the engine ended the stream before it began")
        if not first.startswith(_STREAM_STARTS):
            raise EngineFailed("the engine answered garbage instead of a stream")
        return first

    def _headers(self) -> dict[str, str]:
        key = self._address.key
        return {"accept-encoding": "identity"} | ({} if key is None else {"authorization": f"Bearer {key}"})

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=self._timeout,
                trust_env=False,
                auto_decompress=False,
                skip_auto_headers=("User-Agent",),
            )
        return self._session


@contextmanager
def _as_ours() -> Iterator[None]:
    """aiohttp's errors as ours; they may hold addresses, so nothing of them is repeated."""
    try:
        yield
    except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
        raise EngineUnavailable(f"the engine cannot be reached ({type(error).__name__})") from error
    except aiohttp.ClientConnectionError as error:
        raise EngineBroke(f"the engine broke the connection ({type(error).__name__})") from error
    except (aiohttp.ClientError, HttpProcessingError) as error:
        raise EngineFailed(f"the engine broke off or answered garbage ({type(error).__name__})") from error


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise EngineSilent(f"the engine did not answer within {seconds:g} s") from error


def _serialise(body: Mapping[str, object], engine_name: str) -> bytes:
    """The body as the engine reads it, with `engine_name` as its model. Raises `InvalidRequest`."""
    try:
        text = json.dumps({**body, "model": engine_name}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
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
        document = json.loads(body)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise EngineFailed("the engine answered garbage instead of a JSON object")
    return document
