"""Several engines behind one gateway: who takes a call, who takes it over, and who catches up."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from router.errors import (
    AdapterUnavailable,
    EngineFailed,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
)
from tests.backend_contract import close, idle
from tests.programmable_engine import (
    BASE_ID,
    DEADLINE,
    Order,
    ProgrammableEngine,
    answer,
    error,
    frames,
    hang,
    reset,
    stream,
    waiting_for,
)
from tests.vllm_backends import Running, chat, check, version

SQL, REGEX = version(1), version(2, "regex")


def two() -> tuple[ProgrammableEngine, ProgrammableEngine]:
    return ProgrammableEngine(), ProgrammableEngine()


@pytest.mark.parametrize(
    "order",
    [
        reset,
        error(500, "internal"),
        error(503, "engine core is dead"),
        error(429, "too many"),
        answer(b"<html>"),
        stream(b'{"half":', then=reset),
        stream(b'data: {"error": {"message": "EngineCore died", "code": 500}}\n\n'),
        stream(then=reset),
    ],
)
@pytest.mark.parametrize("streams", [True, False])
def test_a_call_that_fails_before_its_first_byte_is_answered_by_another_engine(order: Order, streams: bool) -> None:
    async def scenario(running: Running) -> None:
        await running.load(SQL)
        for engine in running.engines:
            engine.order(order, order)  # twice: a broken connection is tried again
        with pytest.raises((EngineFailed, EngineOverloaded)):
            await running.backend.open(chat(SQL.engine_name, stream=streams))
        assert all(engine.calls for engine in running.engines)

    async def one_of_two(running: Running) -> None:
        await running.load(SQL)
        favourite = await _favourite(running, SQL.engine_name)
        favourite.order(order, order)
        reply = await running.backend.open(chat(SQL.engine_name, stream=streams))
        assert SQL.engine_name.encode() in b"".join([part async for part in reply.body])

    check(scenario, *two())
    check(one_of_two, *two())


def test_a_call_is_tried_again_although_its_version_went_out_of_use_meanwhile() -> None:
    async def scenario(running: Running) -> None:
        await running.load(SQL)
        favourite = await _favourite(running, SQL.engine_name)
        gate = asyncio.Event()
        favourite.order(waiting_for(gate, error(500, "internal")))
        waiting = asyncio.create_task(running.backend.open(chat(SQL.engine_name)))
        await favourite.until(lambda: len(favourite.calls) == 2)
        await running.backend.unload(SQL.engine_name)
        gate.set()
        reply = await waiting
        assert SQL.engine_name.encode() in b"".join([part async for part in reply.body])
        with pytest.raises(AdapterUnavailable):
            await running.backend.open(chat(SQL.engine_name))

    check(scenario, *two())


def test_killing_an_engine_under_load_fails_no_call_that_had_not_begun() -> None:
    async def scenario(running: Running) -> None:
        await running.load(SQL)
        first, second = running.engines
        gate = asyncio.Event()
        for engine in running.engines:
            engine.order(*[waiting_for(gate, stream(*frames(SQL.engine_name, "hello")))] * 20)
        calls = [asyncio.create_task(running.backend.open(chat(SQL.engine_name, stream=True))) for _ in range(20)]
        await first.until(lambda: len(first.calls) == 10)
        await second.until(lambda: len(second.calls) == 10)
        await first.kill()
        await second.until(lambda: len(second.calls) == 20)
        gate.set()
        for call in calls:
            assert b"".join([part async for part in (await call).body]).endswith(b"data: [DONE]\n\n")

    check(scenario, *two())


@pytest.mark.parametrize("order", [reset, error(500, "EngineCore died", "InternalServerError")])
def test_a_call_that_two_engines_did_not_survive_reaches_no_third(order: Order) -> None:
    async def scenario(running: Running) -> None:
        for engine in running.engines:
            engine.order(order, order)
        with pytest.raises(EngineFailed):
            await running.backend.open(chat())
        assert sum(1 for engine in running.engines if engine.calls) == 2

    check(scenario, *[ProgrammableEngine() for _ in range(4)])


@pytest.mark.parametrize("order", [error(503, "no room"), error(429, "too many")])
def test_engines_that_take_no_call_are_passed_over_however_many_they_are(order: Order) -> None:
    async def scenario(running: Running) -> None:
        for engine in running.engines:
            engine.order(order)
        with pytest.raises((EngineUnavailable, EngineOverloaded)):
            await running.backend.open(chat())
        assert all(engine.calls for engine in running.engines)

    check(scenario, *[ProgrammableEngine() for _ in range(4)])


def test_what_the_client_did_wrong_is_not_tried_again() -> None:
    async def scenario(running: Running) -> None:
        for engine in running.engines:
            engine.order(error(400, "temperature must be positive"))
        with pytest.raises(InvalidRequest, match="temperature"):
            await running.backend.open(chat())
        assert sum(len(engine.calls) for engine in running.engines) == 1

    check(scenario, *two())


def test_a_stream_that_breaks_after_its_first_byte_is_not_begun_again() -> None:
    async def scenario(running: Running) -> None:
        for engine in running.engines:
            engine.order(stream(frames(BASE_ID)[0], then=reset))
        reply = await running.backend.open(chat(stream=True))
        assert await anext(reply.body) == frames(BASE_ID)[0]
        with pytest.raises(EngineFailed):
            await anext(reply.body)
        await idle(running.backend)
        assert sum(len(engine.calls) for engine in running.engines) == 1

    check(scenario, *two())


def test_calls_go_where_the_fewest_are_being_answered() -> None:
    async def scenario(running: Running) -> None:
        gate = asyncio.Event()
        for engine in running.engines:
            engine.order(*[stream(frames(BASE_ID)[0], gate, *frames(BASE_ID)[1:])] * 8)
        replies = [await running.backend.open(chat(stream=True)) for _ in range(8)]
        assert [len(engine.calls) for engine in running.engines] == [4, 4]
        assert [status.outstanding for status in running.backend.engines] == [4, 4]
        gate.set()
        for reply in replies:
            assert [part async for part in reply.body]
        await idle(running.backend)

    check(scenario, *two())


def test_versions_stay_where_they_are_being_decoded() -> None:
    async def scenario(running: Running) -> None:
        versions = [version(number) for number in range(1, 5)]
        await running.load(*versions)
        asked: Counter[tuple[str, int]] = Counter()
        for _ in range(3):
            for one in versions:
                before = [len(engine.calls) for engine in running.engines]
                await running.backend.open(chat(one.engine_name))
                after = [len(engine.calls) for engine in running.engines]
                asked[one.engine_name, [new - old for new, old in zip(after, before, strict=True)].index(1)] += 1
        assert set(asked.values()) == {3}

    check(scenario, *[ProgrammableEngine(max_loras=4) for _ in range(2)])


def test_a_drained_engine_gets_no_calls_and_finishes_those_it_has() -> None:
    async def scenario(running: Running) -> None:
        gate = asyncio.Event()
        drained = await _favourite(running, BASE_ID)
        drained.order(stream(frames(BASE_ID)[0], gate, *frames(BASE_ID)[1:]))
        reply = await running.backend.open(chat(stream=True))
        await running.backend.drain(running.name(drained))
        assert running.status(drained).state == "draining"
        before = len(drained.calls)
        for _ in range(4):
            await running.backend.open(chat())
        assert len(drained.calls) == before
        gate.set()
        assert b"".join([part async for part in reply.body]).endswith(b"data: [DONE]\n\n")
        await running.backend.resume(running.name(drained))
        await running.backend.open(chat())
        assert len(drained.calls) == before + 1

    check(scenario, *two())


def test_an_engine_that_fails_again_and_again_is_left_alone_until_a_trial_succeeds() -> None:
    async def scenario(running: Running) -> None:
        bad = await _favourite(running, BASE_ID)
        bad.order(*[error(500, "no")] * 3)
        before = len(bad.calls)
        for _ in range(12):
            await running.backend.open(chat())
        assert len(bad.calls) == before + 3
        assert [status.problem for status in running.backend.engines if status.problem] == [
            "its last calls failed: others are asked first"
        ]

    check(scenario, *two(), breaker_seconds=600.0)


def test_with_nobody_else_to_ask_an_engine_is_asked_however_often_it_failed() -> None:
    async def scenario(running: Running) -> None:
        running.first.order(*[error(500, "no")] * 5)
        for _ in range(5):
            with pytest.raises(EngineFailed):
                await running.backend.open(chat())
        await running.backend.open(chat())

    check(scenario, breaker_seconds=600.0)


def test_an_engine_that_failed_gets_a_call_on_trial_and_then_its_share() -> None:
    async def scenario(running: Running) -> None:
        bad = await _favourite(running, BASE_ID)
        bad.order(*[error(500, "no")] * 4)
        before = len(bad.calls)
        async with asyncio.timeout(DEADLINE):
            while len(bad.calls) < before + 6:  # three failures, a trial that fails, one that does not, and more
                await running.backend.open(chat())

    check(scenario, *two(), breaker_seconds=0.05)


def test_a_client_that_goes_away_while_it_waits_is_gone_for_the_engine_too() -> None:
    async def scenario(running: Running) -> None:
        running.first.order(hang, stream(frames(BASE_ID)[0], asyncio.Event()))
        waiting = asyncio.create_task(running.backend.open(chat()))
        await running.first.until(lambda: len(running.first.calls) == 1)
        assert running.backend.running == 1
        waiting.cancel()
        await running.first.until(lambda: running.first.gone == 1)
        reply = await running.backend.open(chat(stream=True))
        await anext(reply.body)
        await close(reply)
        await running.first.until(lambda: running.first.gone == 2)
        assert running.backend.running == 0

    check(scenario)


def test_with_no_engine_up_calls_are_refused() -> None:
    async def scenario(running: Running) -> None:
        await running.load(SQL)
        await running.first.kill()
        await running.until(lambda: running.status().state == "down")
        assert not await running.backend.ready()
        with pytest.raises(EngineUnavailable):
            await running.backend.open(chat())
        with pytest.raises(AdapterUnavailable):
            await running.backend.open(chat(SQL.engine_name))
        with pytest.raises(AdapterUnavailable, match="no engine is up"):
            await running.load(REGEX)

    check(scenario)


async def _favourite(running: Running, name: str) -> ProgrammableEngine:
    """The engine that gets a call for `name` while nothing else is going on."""
    before = [len(engine.calls) for engine in running.engines]
    await running.backend.open(chat(name))
    return next(engine for engine, calls in zip(running.engines, before, strict=True) if len(engine.calls) > calls)
