"""HTTP as attackers speak it, on a raw socket: what two parsers could read in two ways, too large, or without end."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.types import ASGIApp, Receive, Scope, Send

from router.cli import listen
from router.http import client_connection
from router.http.client_connection import MAX_HEAD_BYTES, MAX_HEADERS, ClientConnection, Patience
from router.http.gathered_writes import AT_ONCE, GatheredWrites
from router.http.server import GatewayServer
from tests.gateway_parts import DEADLINE

POST = b"POST /v1/x HTTP/1.1\r\nHost: localhost\r\n"
GET = b"GET /v1/x HTTP/1.1\r\nHost: localhost\r\n"
LARGE = 16_000_000  # bytes: more than a kernel takes for a client that reads slowly
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
AMBIGUOUS = {
    "a length and chunks": POST + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + SMUGGLED,
    "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 46\r\n\r\n" + SMUGGLED,
    "the same length twice": POST + b"Content-Length: 1\r\nContent-Length: 1\r\n\r\na",
    "a list of lengths": POST + b"Content-Length: 0, 46\r\n\r\n" + SMUGGLED,
    "a length below zero": POST + b"Content-Length: -1\r\n\r\n",
    "a length with a sign": POST + b"Content-Length: +1\r\n\r\na",
    "a length beyond counting": POST + b"Content-Length: 99999999999999999999999\r\n\r\na",
    "a space before the colon": POST + b"Content-Length : 46\r\n\r\n" + SMUGGLED,
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n" + SMUGGLED,
    "a coding around chunks": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "a coding after chunks": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + SMUGGLED,
    "codings in two headers": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n" + SMUGGLED,
    "a coding behind a control character": POST + b"Transfer-Encoding: \x0bchunked\r\n\r\n" + SMUGGLED,
    "lines that end in LF": b"GET /v1/x HTTP/1.1\nHost: localhost\n\n",
    "chunks that end in LF": CHUNKED.removesuffix(b"\r\n") + b"\n1\nx\n0\n\n",
    "a chunk below zero": CHUNKED.removesuffix(b"\r\n") + b"-1\r\nx\r\n0\r\n\r\n",
    "a folded header": GET + b"X-A: b\r\n c\r\n\r\n",
    "a header with CR": GET + b"X-A: b\rX-B: c\r\n\r\n",
    "a header with NUL": GET + b"X-A: b\0c\r\n\r\n",
    "a header without a colon": GET + b"X-A\r\n\r\n",
    "a header's name with a space": GET + b"X A: b\r\n\r\n",
    "two hosts": GET + b"Host: elsewhere\r\n\r\n",
    "two keys": GET + b"Authorization: Bearer one\r\nAuthorization: Bearer two\r\n\r\n",
    "two content types": GET + b"Content-Type: text/plain\r\nContent-Type: application/json\r\n\r\n",
    "a coding in a header before that of chunks": POST
    + b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a header behind the body": CHUNKED + b"1\r\na\r\n0\r\nAuthorization: Bearer one\r\n\r\n",
    "an upgrade to HTTP/2": POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: 46\r\n\r\n" + SMUGGLED,
    "an upgrade to a websocket": GET + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a tunnel": b"CONNECT elsewhere:80 HTTP/1.1\r\nHost: localhost\r\n\r\n" + SMUGGLED,
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50),
    "a URL with a high byte": b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a port beyond ports": b"GET http://a:99999999/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
}
TOO_LARGE = {
    "one header": GET + b"A: " + b"a" * MAX_HEAD_BYTES + b"\r\n\r\n",
    "one header without an end": GET + b"A: " + b"a" * 1_000_000,
    "a name without an end": GET + b"a" * 1_000_000,
    "a URL": b"GET /" + b"a" * MAX_HEAD_BYTES + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "a URL without an end": b"GET /" + b"a" * 1_000_000,
    "many headers": GET + b"A: b\r\n" * MAX_HEADERS + b"\r\n",
}


@dataclass(slots=True)
class Listening:
    """The gateway's server around an app that reads the body and answers with it."""

    patience: Patience = field(default_factory=Patience)
    port: int = 0
    seen: list[str] = field(default_factory=list)
    _server: GatewayServer | None = None
    _thread: threading.Thread | None = None

    def __enter__(self) -> Listening:
        bound = listen("127.0.0.1", 0)
        self.port = bound.getsockname()[1]
        self._server = GatewayServer(self._app, patience=self.patience)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(bound)))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        assert self._server is not None
        assert self._thread is not None
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(DEADLINE)

    @property
    def connections(self) -> int:
        assert self._server is not None
        return len(self._server.server_state.connections)

    def talk(self, *pieces: bytes) -> bytes:
        """All that comes back for `pieces` until the server closes the connection."""
        with self.connect() as client:
            with suppress(OSError):  # closed meanwhile: what it said before that is there
                for piece in pieces:
                    client.sendall(piece)
            return read_all(client)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), DEADLINE)

    async def _serve(self, bound: socket.socket) -> None:
        assert self._server is not None
        with bound:
            await self._server.serve([bound])

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.seen.append(scope["path"])
        body = b""
        while (message := await receive())["type"] == "http.request":
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            for _ in range(1000):  # 64 MB: more than any kernel keeps for a client that does not read
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        if scope["path"] == "/large":
            await send({"type": "http.response.body", "body": bytes(LARGE), "more_body": True})
        if scope["path"] == "/late":
            await send({"type": "http.response.body", "body": b"begun", "more_body": True})
            await asyncio.sleep(1.2)  # longer than the patience of who asks for it, and two looks of the server
        await send({"type": "http.response.body", "body": body})


def read_all(client: socket.socket) -> bytes:
    found = b""
    with suppress(ConnectionError):
        while piece := client.recv(65536):
            found += piece
    return found


@pytest.fixture(scope="module")
def server() -> Iterator[Listening]:
    with Listening() as listening:
        yield listening


def refusal(answer: bytes) -> tuple[int, str]:
    """Status and code of the one OpenAI error with a request id that `answer` must be."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert re.search(rb"\r\nx-request-id: req-[0-9a-f]{32}\r\n", head)
    assert b"\r\nconnection: close" in head
    error = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return int(head.split()[1]), error["code"]


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_what_two_parsers_could_read_in_two_ways_is_refused_and_the_connection_ends(
    name: str, server: Listening
) -> None:
    before = server.seen.count("/smuggled")
    status, code = refusal(server.talk(AMBIGUOUS[name]))
    assert status in (400, 501)
    assert code in ("invalid_http", "upgrade_refused")
    assert server.seen.count("/smuggled") == before


@pytest.mark.parametrize("name", TOO_LARGE)
def test_a_head_over_its_limit_is_refused_before_it_is_all_there(name: str, server: Listening) -> None:
    request = TOO_LARGE[name]
    pieces = [request[start : start + 65536] for start in range(0, len(request), 65536)]
    assert refusal(server.talk(*pieces)) == (431, "headers_too_large")


def test_a_head_just_within_its_limits_is_taken(server: Listening) -> None:
    headers = b"".join(b"a%d: %s\r\n" % (number, b"a" * 480) for number in range(MAX_HEADERS - 2))
    assert server.talk(GET + headers + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_a_body_in_chunks_is_taken_whole(server: Listening) -> None:
    closing = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert b"hello" in server.talk(closing, b"2;a=b\r\nhe\r\n", b"3\r\nllo\r\n0\r\n\r\n")


def test_what_follows_a_request_for_the_end_of_the_connection_is_not_read(server: Listening) -> None:
    before = server.seen.count("/smuggled")
    assert server.talk(GET + b"Connection: close\r\n\r\n" + SMUGGLED).count(b"HTTP/1.1 200") == 1
    assert server.seen.count("/smuggled") == before


@pytest.mark.parametrize("piece", [b"x: y\r\n" * 10_000, b"x" * 65_536], ids=["headers", "one header that has no end"])
def test_headers_behind_a_body_do_not_go_on_for_ever(piece: bytes, server: Listening) -> None:
    assert refusal(server.talk(CHUNKED + b"1\r\na\r\n0\r\n", piece, piece, piece)) == (400, "invalid_http")


def test_a_request_is_answered_though_garbage_follows_it(server: Listening) -> None:
    answer = server.talk(GET + b"\r\n" + b"\0garbage\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1") == 1


def test_garbage_writes_no_line_into_the_log(server: Listening, caplog: pytest.LogCaptureFixture) -> None:
    for request in AMBIGUOUS.values():
        server.talk(request)
    assert caplog.records == []


@pytest.mark.parametrize("part", ["head", "body"])
def test_a_request_that_comes_too_slowly_is_ended(part: str) -> None:
    begun = {"head": GET, "body": POST + b"Content-Length: 5\r\n\r\nhel"}[part]
    with Listening(Patience(head=0.2, body=0.2)) as server:
        assert refusal(server.talk(begun)) == (408, "request_timeout")


@pytest.mark.parametrize("said", [b"", b"\r\n"])
def test_a_connection_that_asks_for_nothing_is_closed(said: bytes) -> None:
    with Listening(Patience(head=0.2)) as server:
        assert server.talk(said) == b""


def test_a_line_end_behind_a_request_does_not_cut_its_answer_off() -> None:
    with Listening(Patience(head=0.2)) as server, server.connect() as client:
        client.sendall(b"POST /late HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 3\r\n\r\nend")
        found = b""
        while b"begun" not in found:
            found += client.recv(65536)
        client.sendall(b"\r\n")
        assert read_all(client).endswith(b"3\r\nend\r\n0\r\n\r\n")


def test_a_refusal_waits_until_earlier_requests_are_answered() -> None:
    with Listening() as server:
        late = b"POST /late HTTP/1.1\r\nHost: localhost\r\nContent-Length: 3\r\n\r\nend"
        answer = server.talk(late + CHUNKED + b"zz\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert answer.count(b"HTTP/1.1") == 1
        assert answer.endswith(b"3\r\nend\r\n0\r\n\r\n")


def test_who_says_that_nothing_more_comes_gets_an_answer_that_is_there(server: Listening) -> None:
    for _ in range(20):
        with server.connect() as client:
            client.sendall(GET + b"\r\n")
            client.shutdown(socket.SHUT_WR)
            assert read_all(client).startswith(b"HTTP/1.1 200")


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    with Listening(Patience(unread=0.2)) as server, server.connect() as client:
        client.sendall(b"GET /endless HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert client.recv(1)
        until = time.monotonic() + DEADLINE
        while server.connections and time.monotonic() < until:  # this client reads nothing meanwhile
            time.sleep(0.01)
        assert server.connections == 0


def test_a_client_that_reads_slowly_gets_all_of_an_answer() -> None:
    with Listening(Patience(unread=1.0)) as server, server.connect() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.sendall(GET.replace(b"/v1/x", b"/large") + b"Connection: close\r\n\r\n")
        came, begun = 0, time.monotonic()
        while piece := client.recv(LARGE // 8):
            came += len(piece)
            time.sleep(4.0 * len(piece) / LARGE)
        assert time.monotonic() - begun > 3.0  # longer than the patience with one that reads nothing
        assert came > LARGE


def test_one_connection_too_many_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_connection, "MAX_CONNECTIONS", 1)
    with Listening() as server, server.connect() as first:
        first.sendall(GET + b"\r\n")
        assert first.recv(65536).startswith(b"HTTP/1.1 200")
        assert refusal(server.talk()) == (503, "too_many_connections")


HOSTILE = st.lists(
    st.sampled_from(
        [b"\r\n", b"\n", b" ", b":", b"GET ", b"POST ", b"/v1/x", b" HTTP/1.1", b"Host: a", b"\0", b"5", b"0"]
    )
    | st.sampled_from([b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"Connection: ", b"Upgrade", b"close"])
    | st.binary(max_size=8),
    max_size=40,
).map(b"".join)


class Wire(asyncio.Transport):
    """Notes what reaches it, one entry for each call, and whether it reads. `left` bytes are still to be sent."""

    def __init__(self, left: int = 0) -> None:
        super().__init__()
        self.came: list[str] = []
        self.reads = True
        self.left = left

    def get_write_buffer_size(self) -> int:
        return self.left

    def is_closing(self) -> bool:
        return "closed" in self.came

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.came.append(bytes(data).decode())

    def writelines(self, pieces: Iterable[bytes | bytearray | memoryview]) -> None:
        pytest.fail("it does not tell on every Python that it has too much")

    def close(self) -> None:
        self.came.append("closed")

    def abort(self) -> None:
        self.came.append("aborted")


def test_what_is_written_in_one_turn_is_sent_in_one_call_and_before_the_end() -> None:
    async def scenario() -> list[str]:
        wire = Wire()
        gathered = GatheredWrites(wire)
        gathered.write(b"head ")
        gathered.write(b"body")
        await asyncio.sleep(0)
        gathered.write(b"next")
        await asyncio.sleep(0)
        gathered.write(b"last")
        gathered.close()
        await asyncio.sleep(0)
        return wire.came

    assert asyncio.run(scenario()) == ["head body", "next", "last", "closed"]


def test_a_large_piece_is_sent_at_once_so_that_its_writer_feels_who_does_not_read() -> None:
    async def scenario() -> list[int]:
        wire = Wire()
        gathered = GatheredWrites(wire)
        gathered.write(b"head ")
        gathered.write(b"a" * AT_ONCE)
        at_once = len(wire.came)
        await asyncio.sleep(0)
        return [at_once, len(wire.came), *map(len, wire.came)]

    assert asyncio.run(scenario()) == [1, 1, 5 + AT_ONCE]


def test_what_is_written_before_an_abort_is_not_sent() -> None:
    async def scenario() -> list[str]:
        wire = Wire()
        gathered = GatheredWrites(wire)
        gathered.write(b"never")
        gathered.abort()
        await asyncio.sleep(0)
        return wire.came

    assert asyncio.run(scenario()) == ["aborted"]


def connected(wire: Wire, app: ASGIApp) -> ClientConnection:
    server = GatewayServer(app)
    connection = ClientConnection(server.config, server.server_state, {})
    connection.connection_made(wire)
    return connection


def test_who_does_not_take_the_rest_of_an_answer_is_not_waited_for_when_it_is_closed() -> None:
    """Also where the rest is too little to make whoever writes it wait."""

    async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def scenario() -> list[str]:
        wire, patience = Wire(left=3), Patience(unread=1.0)
        connection = connected(wire, answer)
        connection.data_received(GET + b"Connection: close\r\n\r\n")
        await asyncio.sleep(0)
        said = len(wire.came)
        for now in (10.0, 10.9, 11.8, 12.7):
            connection.close_if_late(now, patience)
            wire.left = max(1, wire.left - 1)
        assert len(wire.came) == said
        connection.close_if_late(13.6, patience)
        return wire.came[said - 1 :]

    assert asyncio.run(scenario()) == ["closed", "aborted"]


def test_a_large_body_that_came_at_once_leaves_its_client_in_sight() -> None:
    """What is not read from is not seen to close, either."""

    async def read(_scope: Scope, receive: Receive, _send: Send) -> None:
        while (await receive()).get("more_body"):
            continue

    async def scenario() -> list[bool]:
        wire = Wire()
        connection = connected(wire, read)
        connection.data_received(POST + b"Content-Length: 200000\r\n\r\n")
        await asyncio.sleep(0)
        connection.data_received(bytes(100_000))
        paused = not wire.reads
        await asyncio.sleep(0)
        connection.data_received(bytes(100_000))
        reads = wire.reads
        connection.connection_lost(None)
        return [paused, reads]

    assert asyncio.run(scenario()) == [True, True]


@settings(max_examples=300, deadline=None)
@given(raw=HOSTILE, start=st.sampled_from([b"", GET, POST, CHUNKED, GET + b"\r\n"]))
def test_whatever_comes_is_answered_in_http_or_the_connection_is_closed(
    raw: bytes, start: bytes, server: Listening
) -> None:
    with server.connect() as client:
        client.sendall(start + raw)
        client.shutdown(socket.SHUT_WR)
        answer = read_all(client)
    assert re.fullmatch(rb"(HTTP/1\.1 (?:100|200|400|431|501) (?s:.*))?", answer)
