"""A monitor before a gateway that answers garbage: each question has an answer or a reason, and none lasts for ever."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Sequence

import pytest

from adapters.rows import Example, Message
from trainer.monitoring import live
from trainer.monitoring.live import Answer, Gateway

QUESTION = Example((Message("user", "select all users"),), "sql")
OK = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
GOOD = b'{"model": "sql@1", "choices": [{"message": {"content": "yes"}}]}'


def asked(*pieces: bytes, timeout: float = 30.0, drips: bytes = b"") -> Answer:
    """What becomes of an answer of `pieces`, after which `drips` come for as long as anybody listens."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        try:
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            while drips:
                writer.write(drips)
                await writer.drain()
                await asyncio.sleep(0.01)  # slower than anybody's patience with a single read
        except ConnectionError:
            pass  # it has heard enough
        finally:
            writer.close()

    async def run() -> Sequence[Answer]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            gateway = Gateway(f"http://127.0.0.1:{port}", timeout=timeout)
            return await gateway.ask("sql", [QUESTION], 5, lambda _: None)

    (found,) = asyncio.run(run())
    return found


def test_a_good_answer_is_read() -> None:
    assert asked(OK + b"content-length: %d\r\n\r\n" % len(GOOD) + GOOD) == Answer("yes", "sql@1")


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 100_000,
        b'{"model": "m", "choices": [' + b'{"a":' * 50_000,
        b'{"model": "m", "choices": {}}',
        b'{"choices": [{"message": {"content": "x"}}]}',
        b"\xff\xfe",
        b"",
        b"null",
        gzip.compress(GOOD, mtime=0),
    ],
)
def test_what_is_no_chat_completion_is_said_to_be_none(body: bytes) -> None:
    found = asked(OK + b"content-encoding: gzip\r\n\r\n" + body)
    assert found.error == "no chat completion"


@pytest.mark.parametrize("says", [b"", b"no HTTP\r\n\r\n", b"HTTP/1.1 200 OK\r\n" + b"a: " + b"a" * 300_000])
def test_what_is_no_http_is_an_error(says: bytes) -> None:
    assert asked(says).error is not None


def test_an_answer_without_an_end_is_read_no_further_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "MAX_ANSWER_BYTES", 100_000)
    assert asked(OK + b"\r\n", drips=b"a" * 60_000).error == "no chat completion"


def test_an_answer_that_drips_is_given_up() -> None:
    assert asked(OK + b"\r\n", drips=b" ", timeout=0.3).error == "TimeoutError"
