"""One client's connection: which HTTP is taken on it, how much of it, and how long each part may take.

uvicorn's own protocol bounds neither a request's head nor its time. A refusal here is an OpenAI error with a request
id, like any other, and the end of the connection: what follows on it cannot be told apart from what was refused.
"""

from __future__ import annotations

import json
import time
import uuid
from collections import deque
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .client_side import CLIENT, WhileThere
from .gathered_writes import GatheredWrites

MAX_CONNECTIONS = 16_384  # of a process
MAX_HEAD_BYTES = 64 * 1024  # request line and headers
MAX_HEADERS = 128
MAX_WAITING = 8  # requests of a connection behind the one being answered, before no more is read from it
# Another parser could take the other one.
_ONCE = (b"host", b"authorization", b"content-type", b"transfer-encoding", b"x-request-id")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a connection may take, in seconds: for a request's head, for its body, and until it takes some more of
    what was sent to it.

    The head's time is also what a new connection has to say anything at all. uvicorn itself closes a connection
    that was silent after an answer, when `IDLE_SECONDS` of the server are over.
    """

    head: float = 20.0
    body: float = 120.0
    unread: float = 60.0


class _Refused(Exception):
    """What the client sent is not taken; httptools carries it out of its callbacks."""

    def __init__(self, status: HTTPStatus, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


class ClientConnection(HttpToolsProtocol):
    """Refuses what two parsers could read in two ways, on top of what llhttp refuses: a second Host or key, another
    transfer coding than `chunked`, headers behind the body, upgrades. `close_if_late` is called for every connection
    now and then.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._cycles: deque[RequestResponseCycle] = deque()  # one for each request, the oldest first
        self._awaited: str | None = "head"  # the part of a request that is being read
        self._since = time.monotonic()
        self._unread_since: float | None = None
        self._unread_bytes = 0
        self._head_bytes = 0
        self._head_fields = 0
        self._body_came = False
        self._empty_bytes = 0  # of a body: what came since the last piece of it
        self._may_be_large = False
        self._begun = False
        self._deaf = False

    def close_if_late(self, now: float, patience: Patience) -> None:
        """`now` is `time.monotonic()`. Refuses a request that takes too long to come, ends one nobody takes up."""
        if self._unread_since is None and self.transport.is_closing():  # asyncio sends the rest first, however long
            self._begin_unread(now)
        if self._unread_since is not None and self._is_unread(now, patience.unread):
            self.transport.abort()
        elif self._awaited is not None and now - self._since > getattr(patience, self._awaited):
            if self._awaited == "head" and not self._begun:
                self.transport.close()  # it never said anything
            else:
                self._refuse(
                    _Refused(HTTPStatus.REQUEST_TIMEOUT, "request_timeout", f"the {self._awaited} took too long")
                )

    def connection_made(self, transport: Any) -> None:
        super().connection_made(GatheredWrites(transport))  # type: ignore[arg-type]  # all that uvicorn asks of one
        if len(self.connections) > MAX_CONNECTIONS:
            self._refuse(_Refused(HTTPStatus.SERVICE_UNAVAILABLE, "too_many_connections", "too many connections"))

    def connection_lost(self, exc: Exception | None) -> None:
        """uvicorn tells it to the newest request alone, also where an older one is being answered."""
        for cycle in self._cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()
                cycle.scope[CLIENT].went()  # type: ignore[literal-required]  # a key of our own
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deaf:
            return
        self._unset_keepalive_if_required()
        if self._awaited is None and self._unanswered() is None:  # else it may be a line end behind the last request
            self._await("head")
        in_head = self._awaited == "head" and self._begun
        self._may_be_large = in_head or len(data) > MAX_HEAD_BYTES
        self._body_came = False
        try:
            self.parser.feed_data(data)
            if in_head and self._awaited == "head":  # all of it: httptools holds back a header that has no end yet
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES:
                    raise _too_large()
            elif self._awaited == "body":
                self._require_body(data)
        except httptools.HttpParserCallbackError as error:
            self._refuse(error.__context__ if isinstance(error.__context__, _Refused) else _malformed())
        except _Refused as refused:
            self._refuse(refused)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._refuse(_malformed())

    def eof_received(self) -> None:
        """A client that sends no more gets what was written for it: asyncio itself would close without that."""
        self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._await("head")
        self._begun = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        names = [name for name, _ in self.headers]
        if len(names) > MAX_HEADERS or (self._may_be_large and _size(self.url, self.headers) > MAX_HEAD_BYTES):
            raise _too_large()
        if len(set(names)) < len(names) and any(names.count(name) > 1 for name in _ONCE):
            raise _Refused(HTTPStatus.BAD_REQUEST, "invalid_http", "a header stands there twice that may not")
        if b"transfer-encoding" in names and (b"transfer-encoding", b"chunked") not in self.headers:
            raise _Refused(HTTPStatus.NOT_IMPLEMENTED, "invalid_http", "no transfer coding but chunked is taken")
        if self.parser.should_upgrade():
            raise _Refused(HTTPStatus.BAD_REQUEST, "upgrade_refused", "no other protocol is spoken here")
        self._head_fields = len(names)
        self._body_came = True
        self._await("body")
        self.scope[CLIENT] = WhileThere()  # type: ignore[literal-required]  # a key of our own
        super().on_headers_complete()
        self._cycles.append(self.cycle)
        if 0 < len(self.pipeline) < MAX_WAITING:  # uvicorn reads no more, and so would not see the client go
            self.flow.resume_reading()

    def on_body(self, body: bytes) -> None:
        self._body_came = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._require_no_trailers()
        self._awaited, self._begun = None, False
        super().on_message_complete()
        if not self.pipeline:  # a large body may have paused it, and whoever has all of it asks for no more
            self.flow.resume_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._begin_unread(time.monotonic())

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread_since = None

    def _begin_unread(self, now: float) -> None:
        self._unread_since, self._unread_bytes = now, self.transport.get_write_buffer_size()

    def _is_unread(self, now: float, seconds: float) -> bool:
        """Whether nothing more was taken for so long, as far as our own buffer shows: a kernel makes room in its own by
        the megabyte, so of a large answer a client has to read that much in the time.
        """
        left = self.transport.get_write_buffer_size()
        if left < self._unread_bytes:
            self._unread_since, self._unread_bytes = now, left
        return self._unread_since is not None and now - self._unread_since > seconds

    def _require_body(self, data: bytes) -> None:
        """Raise for what is no piece of the body: chunks need some of it, but hold nothing as large as a head."""
        self._require_no_trailers()
        self._empty_bytes = 0 if self._body_came else self._empty_bytes + len(data)
        if self._empty_bytes > MAX_HEAD_BYTES:
            raise _Refused(HTTPStatus.BAD_REQUEST, "invalid_http", "the body does not go on")

    def _require_no_trailers(self) -> None:
        """httptools hands the headers behind a body over like those before it, and uvicorn takes them for such."""
        if len(self.headers) != self._head_fields:
            raise _Refused(HTTPStatus.BAD_REQUEST, "invalid_http", "no headers are taken behind a body")

    def _await(self, part: str) -> None:
        self._awaited, self._since = part, time.monotonic()

    def _refuse(self, refused: _Refused) -> None:
        """Answer and close; where an earlier request of this connection is being answered, close after that."""
        self._deaf, self._awaited = True, None
        unanswered = self._unanswered()
        if unanswered is not None and not unanswered.more_body:
            unanswered.keep_alive = False
            self.pipeline.clear()
            return
        if unanswered is None or not unanswered.response_started:
            self.transport.write(_answer(refused))
        self.transport.close()

    def _unanswered(self) -> RequestResponseCycle | None:
        """The request whose answer is the next to be complete."""
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        return self._cycles[0] if self._cycles else None


def _size(url: bytes, headers: list[tuple[bytes, bytes]]) -> int:
    return len(url) + sum(len(name) + len(value) + 4 for name, value in headers)


def _malformed() -> _Refused:
    return _Refused(HTTPStatus.BAD_REQUEST, "invalid_http", "this is not HTTP/1.1 as its standard asks for")


def _too_large() -> _Refused:
    return _Refused(
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
        "headers_too_large",
        f"the request's head is over {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers",
    )


def _answer(refused: _Refused) -> bytes:
    kind = "server_error" if refused.status >= 500 else "invalid_request_error"
    error = {"message": str(refused), "type": kind, "param": None, "code": refused.code}
    body = json.dumps({"error": error}).encode()
    lines = (
        f"HTTP/1.1 {refused.status.value} {refused.status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"x-request-id: req-{uuid.uuid4().hex}",
        *(["retry-after: 1"] if refused.status == HTTPStatus.SERVICE_UNAVAILABLE else []),
        "connection: close",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
