"""The inference endpoints on the wire: methods, pipelining, framing, and a client that goes while something waits."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, suppress
from typing import Any

import httpx
import pytest

from router.auth import Gatekeeper
from router.errors import BodyTooLarge, InvalidRequest
from router.http.client_side import ClientGone, WhileThere, read_body
from router.http.inference import ENDPOINTS
from tests.gateway_parts import DEADLINE, Served, make_stock

CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    stock = make_stock(tmp_path_factory.mktemp("stock"), versions=1)
    home = stock.copy(tmp_path_factory.mktemp("served") / "home")
    with Served(home, stock.base, Gatekeeper.for_bind("127.0.0.1", None), live=[("sql", 1)]) as gateway:
        yield gateway


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=DEADLINE) as connected:
        yield connected


def chat(text: str = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "sql", "messages": [{"role": "user", "content": text}], **more}


def request(body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


@pytest.mark.parametrize("path", ENDPOINTS)
@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "DELETE"])
def test_every_method_but_post_is_refused_with_the_right_one(client: httpx.Client, path: str, method: str) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.headers["x-request-id"]
    if method != "HEAD":
        error = response.json()["error"]
        assert error["code"] == "method_not_allowed"
        assert method in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat/completions/", "//v1/chat/completions", "/V1/chat/completions", "/v1"])
def test_a_path_that_is_only_like_an_endpoint_is_unknown(client: httpx.Client, path: str) -> None:
    response = client.post(path, json=chat())
    assert (response.status_code, response.json()["error"]["code"]) == (404, "unknown_url")


def test_a_query_changes_nothing(client: httpx.Client) -> None:
    assert client.post(f"{CHAT}?api-version=1", json=chat()).status_code == 200


def test_a_whole_answer_has_its_length_and_a_stream_is_chunked(client: httpx.Client) -> None:
    whole = client.post(CHAT, json=chat())
    assert int(whole.headers["content-length"]) == len(whole.content)
    stream = client.post(CHAT, json=chat(stream=True))
    assert (stream.headers["transfer-encoding"], stream.headers.get("content-length")) == ("chunked", None)


def test_requests_sent_without_waiting_are_answered_in_their_order(served: Served) -> None:
    texts = ["one", "two", "three", "four"]
    sent = b"".join(request(chat(text, stream=text == "two")) for text in texts)
    with closing(socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE)) as connection:
        connection.sendall(sent)
        received = b""
        while b"four" not in received:
            piece = connection.recv(65536)
            assert piece
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == 4
    places = [received.index(text.encode()) for text in texts]
    assert places == sorted(places)


def test_no_task_is_left_of_requests_that_were_answered_refused_or_abandoned(
    client: httpx.Client, served: Served
) -> None:
    for stream in (False, True):
        assert client.post(CHAT, json=chat(stream=stream)).status_code == 200
        assert client.post(CHAT, json=chat(stream=stream, temperature=9)).status_code == 400
        served.engine.pause_before = 0
        with closing(socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE)) as connection:
            connection.sendall(request(chat(stream=stream)))
            served.until(lambda: served.engine.running == 1, "a running call")
            assert len(serving(served)) == 1
        served.until(lambda: served.engine.running == 0, "an engine that stopped")
        served.obey()
    served.until(lambda: not serving(served), "no task")


def serving(served: Served) -> list[str]:
    """The tasks of the gateway that serve a request."""
    found: list[str] = []
    served.call(lambda: found.extend(repr(task) for task in asyncio.all_tasks() if "run_asgi" in repr(task)))
    return found


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_ends_its_first_request_also_where_it_sent_a_second(served: Served, stream: bool) -> None:
    served.engine.pause_before = 0
    with closing(socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE)) as connection:
        connection.sendall(request(chat(stream=stream)))
        served.until(lambda: served.engine.running == 1, "a running call")
        connection.sendall(request(chat()))
    served.until(lambda: served.engine.running == 0, "an engine that stopped")
    served.obey()


@pytest.mark.parametrize("stream", [False, True])
def test_requests_leave_nothing_to_the_garbage_collector(served: Served, stream: bool) -> None:
    content = request(chat(stream=stream))
    with closing(socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE)) as connection:

        def ask() -> None:
            connection.sendall(content)
            received = b""
            while not received.endswith(b"\r\n0\r\n\r\n" if stream else b"}"):
                received += connection.recv(65_536)

        ask()
        gc.collect()
        gc.disable()
        try:
            for _ in range(50):
                ask()
            left = gc.collect()
        finally:
            gc.enable()
    assert left < 50


# -- the client's side -----------------------------------------------------------------------------------------------


class Client:
    """What a server tells an application of its client: pieces of a body, then nothing until it is `gone`."""

    def __init__(self, *pieces: bytes, content_type: bytes | None = b"application/json") -> None:
        self.gone = asyncio.Event()
        self.scope = {"headers": [] if content_type is None else [(b"content-type", content_type)]}
        self.pieces = list(pieces)

    async def receive(self) -> dict[str, Any]:
        if self.pieces:
            piece = self.pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(self.pieces)}
        await self.gone.wait()
        return {"type": "http.disconnect"}


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(DEADLINE):
            await scenario()

    asyncio.run(main())


def test_a_body_in_pieces_is_read_whole_up_to_its_limit() -> None:
    async def scenario() -> None:
        client = Client(b"ab", b"", b"c")
        assert await read_body(client.scope, client.receive, 3) == b"abc"
        client = Client(b"ab", b"cd", b"never asked for")
        with pytest.raises(BodyTooLarge):
            await read_body(client.scope, client.receive, 3)
        assert client.pieces == [b"never asked for"]

    run(scenario)


def test_a_body_of_another_type_is_refused_unread_and_one_whose_client_goes_is_gone() -> None:
    async def scenario() -> None:
        for content_type in (None, b"text/plain", b"application/jsonx"):
            client = Client(content_type=content_type)
            with pytest.raises(InvalidRequest, match="expected application/json"):
                await read_body(client.scope, client.receive, 3)
        client = Client()
        client.gone.set()
        with pytest.raises(ClientGone):
            await read_body(client.scope, client.receive, 3)

    run(scenario)


def test_a_client_that_goes_cancels_what_waits_for_it() -> None:
    async def scenario() -> None:
        client = WhileThere()

        async def wait() -> None:
            with client:
                client.went()
                await asyncio.Event().wait()

        with pytest.raises(ClientGone):
            await wait()
        await asyncio.sleep(0)  # this task goes on as if nothing had been cancelled
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0

    run(scenario)


def test_a_client_that_went_before_is_not_waited_for_and_one_that_goes_afterwards_cancels_nothing() -> None:
    async def scenario() -> None:
        gone = WhileThere()
        gone.went()
        with pytest.raises(ClientGone), gone:
            pytest.fail("there is nobody to answer")
        answered = WhileThere()
        with answered:
            await asyncio.sleep(0)
        answered.went()
        await asyncio.sleep(0)

    run(scenario)


def test_a_cancellation_by_others_stays_one() -> None:
    async def scenario() -> None:
        for goes in (False, True):
            client, begun = WhileThere(), asyncio.Event()

            async def wait(client: WhileThere = client, begun: asyncio.Event = begun) -> None:
                with client:
                    begun.set()
                    await asyncio.Event().wait()

            waiting = asyncio.create_task(wait())
            await begun.wait()
            if goes:
                client.went()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting

    run(scenario)


def test_who_swallows_the_cancellation_is_told_when_it_asks() -> None:
    async def scenario() -> None:
        client = WhileThere()

        async def swallow() -> None:
            with client:
                client.require()
                client.went()
                with suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
                client.require()

        with pytest.raises(ClientGone):
            await swallow()

    run(scenario)
