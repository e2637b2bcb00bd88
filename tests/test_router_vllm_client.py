"""One engine over HTTP: what goes out, what comes back, and what each failure becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from router.backends.vllm.client import EngineBroke, EngineClient, EngineSilent, FixedAddress
from router.errors import (
    AdapterUnavailable,
    EngineFailed,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    RouterError,
)
from router.types import Call, Endpoint
from tests.programmable_engine import (
    BASE_ID,
    Order,
    ProgrammableEngine,
    answer,
    engines,
    error,
    frames,
    hang,
    reset,
    stream,
)

NAME = "sql@1.0123456789abcdef"
Scenario = Callable[[ProgrammableEngine, EngineClient], Awaitable[None]]


def check(scenario: Scenario) -> None:
    async def run() -> None:
        async with engines(ProgrammableEngine()) as (engine,):
            client = EngineClient(FixedAddress(engine.url, "k"), BASE_ID)
            try:
                await scenario(engine, client)
            finally:
                await client.close()

    asyncio.run(run())


def call(name: str = NAME, endpoint: Endpoint = "chat/completions", **body: object) -> Call:
    return Call(endpoint, name, {"model": "auto", **body}, stream=body.get("stream") is True, request_id="r-1")


def failure(order: Order, request: Call) -> RouterError:
    """What `order` makes of `request`."""
    found: list[RouterError] = []

    async def scenario(engine: ProgrammableEngine, client: EngineClient) -> None:
        engine.order(order, order)
        with pytest.raises(RouterError) as failed:
            await client.begin(request)
        found.append(failed.value)

    check(scenario)
    return found[0]


def test_the_body_goes_out_with_the_engine_name_and_nothing_else_of_the_client() -> None:
    async def scenario(engine: ProgrammableEngine, client: EngineClient) -> None:
        for endpoint, path in [
            ("chat/completions", "/v1/chat/completions"),
            ("completions", "/v1/completions"),
            ("responses", "/v1/responses"),
            ("tokenize", "/tokenize"),
        ]:
            await client.begin(call(endpoint=endpoint, prompt="größe ✓", tools=[{"deep": [1, None]}]))  # type: ignore[arg-type]
            seen = engine.seen[-1]
            assert seen.path == path
            assert seen.body == {"model": NAME, "prompt": "größe ✓", "tools": [{"deep": [1, None]}]}
            assert seen.headers["authorization"] == "Bearer k"
            assert seen.headers["accept-encoding"] == "identity"
            request_id, _, suffix = seen.headers["x-request-id"].partition(".")
            assert (request_id, len(suffix)) == ("r-1", 9)
        assert len({seen.headers["x-request-id"] for seen in engine.seen}) == 4

    check(scenario)


def test_an_answer_comes_back_byte_for_byte() -> None:
    body = b'{ "odd" :  [1.0, "\\u00e9"]}\n'

    async def scenario(engine: ProgrammableEngine, client: EngineClient) -> None:
        engine.order(answer(body))
        begun = await client.begin(call())
        assert (begun.first, begun.content_type, begun.response) == (body, "application/json", None)

    check(scenario)


def test_a_stream_begins_with_its_first_bytes() -> None:
    async def scenario(engine: ProgrammableEngine, client: EngineClient) -> None:
        gate = asyncio.Event()
        first, *rest = frames(NAME, "hello")
        engine.order(stream(first, gate, *rest))
        begun = await client.begin(call(stream=True))
        assert begun.first == first
        assert begun.content_type == "text/event-stream; charset=utf-8"
        gate.set()
        assert begun.response is not None
        assert await begun.response.read() == b"".join(rest)

    check(scenario)


@pytest.mark.parametrize("start", [b"event: response.created\ndata: {}\n\n", b": keep-alive\n\n", b"data: {}\n\n"])
def test_every_start_of_a_stream_that_vllm_sends_is_taken(start: bytes) -> None:
    async def scenario(engine: ProgrammableEngine, client: EngineClient) -> None:
        engine.order(stream(start[:3], start[3:]))
        begun = await client.begin(call(endpoint="responses", stream=True))
        assert begun.response is not None
        assert begun.first + await begun.response.read() == start

    check(scenario)


@pytest.mark.parametrize(
    "body", [b"", b"<html>", b"[1]", b'{"a":', b"null", b"\xff\xfe", b"[" * 10**6], ids=lambda body: repr(body[:8])
)
def test_what_is_no_json_object_is_the_engines_failure(body: bytes) -> None:
    assert type(failure(answer(body), call())) is EngineFailed


@pytest.mark.parametrize("pieces", [[], [b"<html>no stream</html>"], [b'{"choices": []}'], [b"dat"]])
def test_what_is_no_stream_is_the_engines_failure(pieces: list[bytes]) -> None:
    assert type(failure(stream(*pieces), call(stream=True))) is EngineFailed


@pytest.mark.parametrize(
    ("status", "kind", "expected"),
    [(500, "InternalServerError", EngineFailed), (503, "ServiceUnavailableError", EngineUnavailable)],
)
def test_an_error_where_a_stream_should_begin_is_an_error(status: int, kind: str, expected: type[RouterError]) -> None:
    document = {"error": {"message": "EngineCore died", "type": kind, "param": None, "code": status}}
    event = b"data: " + json.dumps(document).encode() + b"\n\n"
    assert type(failure(stream(event[:20], event[20:], b"data: [DONE]\n\n"), call(stream=True))) is expected


@pytest.mark.parametrize("streams", [True, False])
def test_a_connection_that_breaks_before_the_first_byte_is_unavailable(streams: bool) -> None:
    assert type(failure(reset, call(stream=streams))) is EngineBroke


def test_an_answer_that_breaks_off_is_a_failure() -> None:
    assert type(failure(stream(b'{"choices":', then=reset), call())) is EngineFailed


def test_nobody_listening_is_unavailable() -> None:
    async def scenario(engine: ProgrammableEngine, client: EngineClient) -> None:
        await engine.kill()
        with pytest.raises(EngineUnavailable):
            await client.begin(call())
        with pytest.raises(EngineUnavailable):
            await client.get("/health", seconds=5)

    check(scenario)


def test_a_kept_connection_that_the_engine_closed_is_no_failure() -> None:
    async def scenario(engine: ProgrammableEngine, client: EngineClient) -> None:
        await client.begin(call())
        engine.order(reset)
        assert json.loads((await client.begin(call())).first)["model"] == NAME
        assert len(engine.seen) == 3

    check(scenario)


def test_silence_is_told_apart_from_a_refusal() -> None:
    async def scenario(engine: ProgrammableEngine, client: EngineClient) -> None:
        engine.health = None
        with pytest.raises(EngineSilent, match=r"within 0\.05 s"):
            await client.get("/health", seconds=0.05)
        engine.order(hang)
        with pytest.raises(EngineSilent):
            await client.ask("/v1/completions", {"model": NAME}, seconds=0.05, request_id="r")

    check(scenario)


def test_cancelling_a_call_closes_its_connection() -> None:
    async def scenario(engine: ProgrammableEngine, client: EngineClient) -> None:
        engine.order(hang)
        waiting = asyncio.create_task(client.begin(call()))
        await engine.until(lambda: len(engine.seen) == 1)
        waiting.cancel()
        await engine.until(lambda: engine.gone == 1)

    check(scenario)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (400, InvalidRequest),
        (401, EngineFailed),
        (403, EngineFailed),
        (413, InvalidRequest),
        (422, InvalidRequest),
        (429, EngineOverloaded),
        (500, EngineFailed),
        (501, InvalidRequest),
        (502, EngineFailed),
        (503, EngineUnavailable),
    ],
)
@pytest.mark.parametrize("name", [BASE_ID, NAME])
def test_every_status_has_its_error(name: str, status: int, expected: type[RouterError]) -> None:
    assert type(failure(error(status, "no"), call(name))) is expected


@pytest.mark.parametrize("value", [["\ud800"], {"content": "a\udfff"}])
def test_half_a_surrogate_pair_is_the_clients_fault_and_named(value: object) -> None:
    async def scenario(_engine: ProgrammableEngine, client: EngineClient) -> None:
        with pytest.raises(InvalidRequest) as refused:
            await client.begin(call(messages=[{"role": "user"}, value]))
        assert refused.value.param == ("messages[1][0]" if isinstance(value, list) else "messages[1].content")

    check(scenario)


def test_a_number_that_is_not_finite_is_the_clients_fault() -> None:
    async def scenario(_engine: ProgrammableEngine, client: EngineClient) -> None:
        nested: Any = []
        for _ in range(100_000):
            nested = [nested]
        for value in (float("inf"), nested):
            with pytest.raises(InvalidRequest, match="finite"):
                await client.begin(call(temperature=value))

    check(scenario)


@pytest.mark.parametrize(
    "order",
    [
        error(404, f"The model `{NAME}` does not exist.", "NotFoundError", "model"),
        error(400, f"LoRA adapter '{NAME}' was found but could not be loaded."),
    ],
)
def test_an_engine_that_does_not_take_a_version_is_not_the_clients_fault(order: Order) -> None:
    refused = failure(order, call())
    assert isinstance(refused, AdapterUnavailable)
    assert NAME in refused.message


def test_a_refusal_that_repeats_the_clients_words_is_the_clients_fault() -> None:
    said = f"LoRA adapter '{NAME}' was found but could not be loaded."
    repeated = f"1 validation error:\n  {{'type': 'float_parsing', 'msg': 'not a number', 'input': {said!r}}}"
    assert type(failure(error(400, repeated), call())) is InvalidRequest


def test_an_engine_that_does_not_know_its_base_has_failed() -> None:
    assert type(failure(error(404, "The model `base` does not exist.", param="model"), call(BASE_ID))) is EngineFailed


def test_an_endpoint_that_is_not_served_is_named_so() -> None:
    refused = failure(answer(b'{"detail":"Not Found"}', status=404), call())
    assert isinstance(refused, InvalidRequest)
    assert refused.code == "unsupported_endpoint"
