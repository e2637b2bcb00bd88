"""Engines that speak garbage on a raw socket: each answer becomes bytes or one of our errors, and never takes for ever.

`EXAMPLES` answers made of HTTP's and SSE's own words, and the shapes that once were or could be a trap.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterator
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from router.backends.vllm import connection
from router.backends.vllm.body import Body
from router.backends.vllm.client import EngineClient, FixedAddress
from router.backends.vllm.connection import MAX_HEAD_BYTES
from router.errors import EngineFailed, RouterError
from router.types import Call
from tests.fuzz_mutations import mutate

EXAMPLES = 250
OK = b"HTTP/1.1 200 OK\r\n"
SSE = OK + b"content-type: text/event-stream\r\n"
JSON = OK + b"content-type: application/json\r\n"
EVENT = b'data: {"choices": [{"delta": {"content": "a"}}], "usage": {"prompt_tokens": 1}}\n\n'
DONE = b"data: [DONE]\n\n"
DOCUMENT = json.dumps({"model": "tiny", "choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}).encode()
Taken = bytes | RouterError


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


GOOD = {
    "a stream": SSE + b"transfer-encoding: chunked\r\n\r\n" + chunked(EVENT, DONE),
    "a stream up to the end of the connection": SSE + b"\r\n" + EVENT + DONE,
    "a document": JSON + b"content-length: %d\r\n\r\n" % len(DOCUMENT) + DOCUMENT,
}
BAD = {
    "nothing": b"",
    "no HTTP": b"\x16\x03\x01\x02\x00",
    "a line without an end": b"HTTP/1.1 200 " + b"a" * 300_000,
    "a header without an end": OK + b"a: " + b"a" * 300_000,
    "headers without an end": OK + b"a: b\r\n" * 100_000,
    "hints without an end": b"HTTP/1.1 100 Continue\r\n\r\n" * 20_000,
    "another protocol": b"HTTP/1.1 101 Switching\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n" + EVENT,
    "a length that is too long": JSON + b"content-length: 999\r\n\r\n" + DOCUMENT,
    "a length that is too short": JSON + b"content-length: 5\r\n\r\n" + DOCUMENT,
    "two lengths": JSON + b"content-length: 5\r\ncontent-length: 6\r\n\r\n" + DOCUMENT,
    "a length and chunks": JSON + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n" + chunked(DOCUMENT),
    "chunks that are none": JSON + b"transfer-encoding: chunked\r\n\r\nzz\r\n" + DOCUMENT,
    "a chunk beyond counting": JSON + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
    "chunks without an end": JSON + b"transfer-encoding: chunked\r\n\r\n" + chunked(DOCUMENT)[:-5],
    "a nest": JSON + b"\r\n" + b"[" * 200_000,
    "a list": JSON + b"content-length: 2\r\n\r\n[]",
    "no UTF-8": JSON + b"content-length: 2\r\n\r\n\xff\xfe",
    "an error": b"HTTP/1.1 500 x\r\ncontent-length: 2\r\n\r\n{}",
    "an error without an end": b"HTTP/1.1 400 x\r\n\r\n" + b"'msg': '" * 50_000,
    "a status beyond statuses": b"HTTP/1.1 999 x\r\ncontent-length: 2\r\n\r\n{}",
    "a place to go to": b"HTTP/1.1 302 x\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\n\r\n",
    "a line of a stream without an end": SSE + b"\r\ndata: " + b"a" * 3_000_000,
    "an error event without an end": SSE + b'\r\ndata: {"error": {"message": "' + b"a" * 1_000_000,
    "an error event of a nest": SSE + b'\r\ndata: {"error": ' + b"[" * 60_000 + b"\n\n",
}


class Raw:
    """A server that answers each request with `says`, then closes. `repeats` are sent a thousand times after it, for as
    long as the client listens: `taken` counts them.
    """

    def __init__(self) -> None:
        self.says = b""
        self.repeats = b""
        self.taken = 0
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            length = next(
                (int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), 0
            )
            await reader.readexactly(length)
            writer.write(self.says)
            await writer.drain()
            for _ in range(1000 if self.repeats else 0):
                writer.write(self.repeats)
                await writer.drain()
                self.taken += 1
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has heard enough
        finally:
            writer.close()


Ask = Callable[[bytes, bool], Taken]


@pytest.fixture(scope="module")
def raw() -> Raw:
    return Raw()


@pytest.fixture(scope="module")
def ask(raw: Raw) -> Iterator[Ask]:
    """What becomes of an answer's bytes: all that came through, or the error before or within it."""
    with asyncio.Runner() as runner:
        runner.run(raw.start())

        async def asked(says: bytes, stream: bool) -> Taken:
            raw.says = says
            client = EngineClient(FixedAddress(f"http://127.0.0.1:{raw.port}", "k"), "tiny")
            try:
                async with asyncio.timeout(30):
                    return await _whole(client, stream)
            except RouterError as error:
                return error
            finally:
                await client.close()

        def work(says: bytes, stream: bool) -> Taken:
            done: Awaitable[Taken] = asked(says, stream)
            return runner.run(done)  # type: ignore[arg-type]  # it is a coroutine

        yield work
        runner.run(raw.stop())


async def _whole(client: EngineClient, stream: bool) -> bytes:
    body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "stream": stream}
    begun = await client.begin(Call("chat/completions", "tiny", body, stream, "r-1"))
    reply = Body(begun, lambda: None, lambda _: None)
    return b"".join([piece async for piece in reply])


@pytest.mark.parametrize("name", GOOD)
def test_a_good_answer_comes_through_as_it_was_sent(name: str, ask: Ask) -> None:
    found = ask(GOOD[name], "stream" in name)
    assert found == (EVENT + DONE if "stream" in name else DOCUMENT)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_an_error_of_ours_or_the_bytes_that_came(name: str, stream: bool, ask: Ask) -> None:
    found = ask(BAD[name], stream)
    assert isinstance(found, (bytes, RouterError))
    if isinstance(found, RouterError):
        assert len(found.message) < 1000
        assert "127.0.0.1" not in str(found)


@pytest.mark.parametrize(
    ("begins", "goes_on"),
    [
        (b"HTTP/1.1 200 ", b"a" * MAX_HEAD_BYTES),
        (OK + b"a: ", b"a" * MAX_HEAD_BYTES),
        (OK, b"a: b\r\n" * (MAX_HEAD_BYTES // 6)),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * (MAX_HEAD_BYTES // 25)),
    ],
)
def test_a_head_without_an_end_is_read_no_further_than_its_limit(
    begins: bytes, goes_on: bytes, ask: Ask, raw: Raw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raw, "repeats", goes_on)
    monkeypatch.setattr(raw, "taken", 0)
    assert isinstance(ask(begins, False), EngineFailed)
    assert raw.taken < 500  # what fits into the kernels' buffers, of 64 MB


def test_a_document_without_an_end_is_read_no_further_than_its_limit(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "MAX_ANSWER_BYTES", 100_000)
    long = b'{"a": "' + b"a" * 1_000_000 + b'"}'
    assert isinstance(ask(JSON + b"content-length: %d\r\n\r\n" % len(long) + long, False), EngineFailed)


def test_a_place_to_go_to_is_not_gone_to(ask: Ask) -> None:
    assert isinstance(ask(BAD["a place to go to"], False), RouterError)


@pytest.mark.timeout(120)
@settings(max_examples=EXAMPLES, deadline=None, database=None)
@given(number=st.integers(0, 2**63), stream=st.booleans())
def test_any_answer_is_bytes_or_an_error_of_ours(number: int, stream: bool, ask: Ask) -> None:
    random = Random(number)
    good = random.choice(list(GOOD.values()))
    head, _, body = good.partition(b"\r\n\r\n")
    if random.random() < 0.5:  # a body of another shape in a frame that fits it
        body = mutate(random, {"": random.choice((DOCUMENT, EVENT + DONE))})[""]
        says = OK + b"content-length: %d\r\n\r\n" % len(body) + body
    else:
        says = mutate(random, {"": head})[""] + b"\r\n\r\n" + mutate(random, {"": body})[""]
    assert isinstance(ask(says, stream), (bytes, RouterError))
