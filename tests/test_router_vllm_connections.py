"""The connections to an engine: kept, replaced, given up, and what an engine may do to them, byte by byte."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from router.backends.vllm.connection import HIGH_WATER, MAX_HEAD_BYTES, AnswerBroken, ConnectionLost
from router.backends.vllm.connections import Connections, Origin, Unreachable

DEADLINE = 30.0  # seconds, for what must happen soon but at no stated time
REQUEST = b"POST /x HTTP/1.1\r\nhost: h\r\ncontent-length: 2\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-type: a/b\r\ncontent-length: 2\r\n\r\n{}"


@dataclass(slots=True)
class Wire:
    """A server that answers each request on a connection with the next of its `answers`, byte for byte.

    `None` closes the connection instead; so does an answer that ends with `END`. `accepted` counts connections,
    `gone` those that the client closed.
    """

    answers: list[bytes | None]
    accepted: int = 0
    gone: int = 0
    asked: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        try:
            while await self._request(reader):
                self.asked += 1
                self._tell()
                answer = self.answers.pop(0) if self.answers else OK
                if answer is None:
                    break
                writer.write(answer.removesuffix(END))
                await writer.drain()
                if answer.endswith(END):
                    break
            else:
                self.gone += 1
        except ConnectionError:
            self.gone += 1
        finally:
            self._tell()
            writer.close()

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not holds():
                await self.changed.wait()

    async def _request(self, reader: asyncio.StreamReader) -> bool:
        try:
            return bool(await reader.readexactly(len(REQUEST) + 2))
        except asyncio.IncompleteReadError:
            return False

    def _tell(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


END = b"<the connection ends here>"
Scenario = Callable[[Wire, Connections, Origin], Awaitable[None]]


def check(scenario: Scenario, *answers: bytes | None) -> None:
    async def run() -> None:
        wire = Wire(list(answers))
        server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
        connections = Connections(connect_seconds=5)
        try:
            origin = Origin("127.0.0.1", server.sockets[0].getsockname()[1], tls=False)
            await scenario(wire, connections, origin)
        finally:
            await connections.close()
            server.close()
            await server.wait_closed()

    asyncio.run(run())


async def ask(connections: Connections, origin: Origin) -> tuple[int, bytes]:
    answer = await connections.send(origin, REQUEST, b"{}")
    return answer.status, await answer.read()


def found(*answers: bytes | None) -> tuple[int, bytes]:
    """The answer to a request that a server answers so."""
    seen: list[tuple[int, bytes]] = []

    async def scenario(_wire: Wire, connections: Connections, origin: Origin) -> None:
        seen.append(await ask(connections, origin))

    check(scenario, *answers)
    return seen[0]


def test_one_connection_carries_request_after_request() -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        for _ in range(5):
            assert await ask(connections, origin) == (200, b"{}")
        assert (wire.asked, wire.accepted) == (5, 1)

    check(scenario)


def test_requests_at_the_same_time_have_a_connection_each() -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        answers = await asyncio.gather(*[ask(connections, origin) for _ in range(5)])
        assert answers == [(200, b"{}")] * 5
        assert wire.accepted == 5

    check(scenario)


@pytest.mark.parametrize(
    "last",
    [
        b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        OK + END,
    ],
)
def test_a_connection_that_the_engine_ends_is_not_used_again(last: bytes) -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        assert await ask(connections, origin) == (200, b"{}")
        assert await ask(connections, origin) == (200, b"{}")
        assert wire.accepted == 2

    check(scenario, last)


def test_a_kept_connection_that_was_closed_meanwhile_is_replaced_and_a_second_loss_is_told() -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        await ask(connections, origin)
        assert await ask(connections, origin) == (200, b"{}")
        assert (wire.asked, wire.accepted) == (3, 2)
        with pytest.raises(ConnectionLost):
            await ask(connections, origin)

    check(scenario, OK, None, OK, None, None)


def test_a_request_that_a_new_connection_was_lost_with_is_not_sent_again() -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        with pytest.raises(ConnectionLost):
            await ask(connections, origin)
        assert wire.asked == 1

    check(scenario, None)


def test_an_engine_that_dies_of_a_request_on_a_kept_connection_was_given_it() -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        server = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
        dying = Origin("127.0.0.1", server.sockets[0].getsockname()[1], tls=False)
        await ask(connections, dying)
        server.close()  # nobody listens any more; the kept connection stays
        with pytest.raises(ConnectionLost):
            await ask(connections, dying)

    check(scenario, OK, None)


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\nt: 1\r\n\r\n", b"abc"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil it closes" + END, b"until it closes"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + OK, b"{}"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
    ],
)
def test_every_way_to_frame_an_answer_is_read(answer: bytes, body: bytes) -> None:
    assert found(answer) == (200, body)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 200 OK\r\nx: " + b"y" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n{}" + END,
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n" + END,
        b"HTTP/1.1 200 OK\r\ncont" + END,
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}",
    ],
)
def test_an_answer_that_is_no_http_or_breaks_off_is_broken_and_not_asked_for_again(answer: bytes) -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        with pytest.raises(AnswerBroken):
            await ask(connections, origin)
        assert wire.asked == 1

    check(scenario, answer)


def test_bytes_that_nobody_asked_for_never_answer_the_next_request() -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        first = await connections.send(origin, REQUEST, b"{}")
        with pytest.raises(AnswerBroken):
            await first.read()
        assert await ask(connections, origin) == (200, b"{}")
        assert wire.accepted == 2

    check(scenario, OK + b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil")


def test_closing_an_answer_before_its_end_closes_the_connection() -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        answer = await connections.send(origin, REQUEST, b"{}")
        assert await answer.readany() == b"{"
        answer.close()
        with pytest.raises(AnswerBroken):
            await answer.readany()
        await wire.until(lambda: wire.gone == 1)

    check(scenario, OK[:-1])


def test_an_answer_that_fails_wakes_who_waits_for_it() -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        answer = await connections.send(origin, REQUEST, b"{}")
        await answer.readany()
        waiting = asyncio.ensure_future(answer.readany())
        await asyncio.sleep(0)
        answer.fail(ValueError("down"))
        with pytest.raises(ValueError, match="down"):
            await waiting
        await wire.until(lambda: wire.gone == 1)

    check(scenario, OK[:-1])


def test_an_answer_that_nobody_reads_is_not_taken_into_memory() -> None:
    size = 64 * HIGH_WATER
    head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size

    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        answer = await connections.send(origin, REQUEST, b"{}")
        for _ in range(1000):  # turns in which the loop would take it all
            await asyncio.sleep(0)
        pieces = [await answer.readany()]
        assert len(pieces[0]) <= 2 * HIGH_WATER
        while piece := await answer.readany():
            pieces.append(piece)
        assert sum(map(len, pieces)) == size
        assert await ask(connections, origin) == (200, b"{}")
        assert wire.accepted == 1

    check(scenario, head + b"x" * size)


def test_an_engine_that_moved_is_asked_at_its_new_address() -> None:
    async def scenario(wire: Wire, connections: Connections, origin: Origin) -> None:
        await ask(connections, origin)
        other = await asyncio.start_server(wire.serve, "127.0.0.1", 0)
        async with other:
            moved = Origin("127.0.0.1", other.sockets[0].getsockname()[1], tls=False)
            assert await ask(connections, moved) == (200, b"{}")
            await wire.until(lambda: wire.gone == 1)  # the kept one leads to nobody
            await connections.close()

    check(scenario)


def test_nobody_listening_is_unreachable() -> None:
    async def scenario(_wire: Wire, connections: Connections, _origin: Origin) -> None:
        with pytest.raises(Unreachable, match="ConnectionRefusedError"):
            await ask(connections, Origin("127.0.0.1", 1, tls=False))

    check(scenario)


def test_certificates_are_read_once_for_all_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[ssl.SSLContext] = []
    make = ssl.create_default_context

    def counted() -> ssl.SSLContext:
        read.append(make())
        return read[-1]

    monkeypatch.setattr(ssl, "create_default_context", counted)

    async def scenario(_wire: Wire, connections: Connections, origin: Origin) -> None:
        for _ in range(2):
            with pytest.raises(Unreachable):
                await ask(connections, Origin(origin.host, origin.port, tls=True))  # it speaks no TLS
        assert len(read) == 1

    check(scenario)


def test_a_url_says_where_and_whether_by_tls() -> None:
    assert Origin.of("http://[::1]:8001") == Origin("::1", 8001, tls=False)
    assert Origin.of("https://engine.example") == Origin("engine.example", 443, tls=True)
