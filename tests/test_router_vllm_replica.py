"""One engine's state: what its health, its silence, its restarts and its identity make of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import replace
from typing import Literal

import pytest
from aiohttp import web

from router.backends.vllm.backend import Engine, VllmBackend
from router.errors import EngineFailed, EngineUnavailable
from tests.backend_contract import close
from tests.programmable_engine import (
    BASE_ID,
    DEADLINE,
    Order,
    ProgrammableEngine,
    answer,
    engines,
    frames,
    hang,
    in_turn,
    stream,
    waiting_for,
)
from tests.vllm_backends import CALM, Running, chat, check, taken, version

SQL = version(1)
AT_ONCE = {"quiet_seconds": 0.02, "still_seconds": 0.02}
FIRST, *REST = frames(BASE_ID, "hello")


def test_an_engine_that_answers_503_to_health_takes_no_calls_but_finishes_its_own() -> None:
    async def scenario(running: Running) -> None:
        gate = asyncio.Event()
        running.first.order(stream(FIRST, gate, *REST))
        reply = await running.backend.open(chat(stream=True))
        running.first.health = 503
        await running.until(lambda: running.status().state == "draining")
        with pytest.raises(EngineUnavailable):
            await running.backend.open(chat())
        gate.set()
        assert b"".join([part async for part in reply.body]).endswith(b"data: [DONE]\n\n")
        running.first.health = 200
        await running.until(lambda: running.status().state == "up")

    check(scenario)


def test_an_engine_that_is_silent_is_down_and_its_calls_end() -> None:
    async def scenario(running: Running) -> None:
        running.first.order(stream(FIRST, asyncio.Event()), hang)
        reply = await running.backend.open(chat(stream=True))
        assert await anext(reply.body) == FIRST
        waiting = asyncio.create_task(running.backend.open(chat()))
        await running.first.until(lambda: len(running.first.calls) == 2)
        running.first.health = None
        with pytest.raises(EngineUnavailable):
            await waiting
        with pytest.raises(EngineFailed, match="went down"):
            await anext(reply.body)
        assert (running.status().state, running.status().outstanding) == ("down", 0)
        assert "health" in (running.status().problem or "")
        running.first.health = 200
        await running.until(lambda: running.status().state == "up")
        assert running.status().problem is None

    check(scenario, health_seconds=0.05, misses=2)


def test_an_engine_that_sends_tokens_is_not_down_however_slow_its_health() -> None:
    async def chatty(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(FIRST)
            await asyncio.sleep(0.005)

    async def scenario(running: Running) -> None:
        running.first.order(chatty)
        reply = await running.backend.open(chat(stream=True))

        async def read() -> None:
            async for _ in reply.body:
                pass

        reader = asyncio.create_task(read())
        running.first.health = None
        before = running.first.health_checks
        await running.first.until(lambda: running.first.health_checks > before + 5)
        assert running.status().state == "up"
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)

    check(scenario, health_seconds=0.1, misses=3)


def test_an_engine_that_refuses_connections_is_down_at_once() -> None:
    async def scenario(running: Running) -> None:
        await running.first.kill()
        await running.until(lambda: running.status().state == "down")
        assert running.status().problem == "it cannot be reached"

    check(scenario, misses=1000)


def test_a_core_that_hangs_is_found_although_the_engine_says_it_is_healthy() -> None:
    async def scenario(running: Running) -> None:
        running.first.order(stream(FIRST, asyncio.Event()))
        reply = await running.backend.open(chat(stream=True))
        assert await anext(reply.body) == FIRST
        running.first.core_hangs = True
        waiting = asyncio.create_task(running.backend.open(chat()))
        with pytest.raises(EngineUnavailable):
            await waiting
        with pytest.raises(EngineFailed):
            await anext(reply.body)
        assert running.status().problem == "it accepts requests and answers none"
        checks = running.first.health_checks
        await running.first.until(lambda: running.first.health_checks > checks + 2)
        assert running.status().state == "down"  # healthy by its own words only
        running.first.core_hangs = False
        await running.until(lambda: running.status().state == "up")

    check(scenario, stall_seconds=0.05, core_seconds=0.05)


def test_a_core_whose_counters_move_does_not_hang_however_long_the_queue() -> None:
    async def scenario(running: Running) -> None:
        engine = running.first
        engine.core_hangs = engine.works = True
        waiting = asyncio.create_task(running.backend.open(chat()))
        await engine.until(lambda: len([seen for seen in engine.seen if seen.is_ours]) >= 3)
        assert running.status().state == "up"
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    check(scenario, stall_seconds=0.02, core_seconds=0.02)


def test_a_problem_that_is_over_is_seen_at_the_next_look() -> None:
    async def scenario(running: Running) -> None:
        for health in (404, 401, 503):
            running.first.health = health
            await running.until(lambda: running.status().state != "up")
            running.first.health = 200
            await running.until(lambda: running.status().state == "up")

    check(scenario, identify_every=1_000_000)


def test_calls_of_a_core_that_hangs_are_answered_by_another_engine() -> None:
    async def scenario(running: Running) -> None:
        first, second = running.engines
        for engine in running.engines:
            engine.core_hangs = True
        waiting = [asyncio.create_task(running.backend.open(chat())) for _ in range(2)]
        for engine in running.engines:
            await engine.until(lambda engine=engine: len(engine.calls) == 1)  # type: ignore[misc]
        second.core_hangs = False
        async with asyncio.timeout(DEADLINE):
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        assert done.pop().exception() is None
        assert running.status(first).state == "down"
        assert len(second.calls) == 2
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)

    check(scenario, ProgrammableEngine(), ProgrammableEngine(), stall_seconds=0.5, core_seconds=0.1)


@pytest.mark.parametrize(("streams", "then"), [(True, stream(FIRST, *REST)), (False, answer(b'{"choices": []}'))])
def test_calls_of_an_engine_that_stands_still_are_answered_by_another_and_it_stays_up(
    streams: bool, then: Order
) -> None:
    async def scenario(running: Running) -> None:
        act = in_turn(hang, then)
        for engine in running.engines:
            engine.order(act)
        waiting = asyncio.create_task(running.backend.open(chat(stream=streams)))
        still, other = await taken(running)
        await (await waiting).body.__anext__()
        assert (len(still.calls), len(other.calls)) == (1, 1)
        await still.until(lambda: still.gone == 1)
        await running.until(lambda: running.status(still).problem is None)  # it answers a token: it is asked again
        assert running.status(still).state == "up"

    check(scenario, ProgrammableEngine(), ProgrammableEngine(), **AT_ONCE)


def test_an_engine_that_stands_still_keeps_its_calls_where_no_other_can_answer_them() -> None:
    async def scenario(running: Running) -> None:
        first, second = running.engines
        second.broken.add(SQL.engine_name)
        await running.load(SQL)
        gate = asyncio.Event()
        first.order(waiting_for(gate, stream(*frames(SQL.engine_name))))
        waiting = asyncio.create_task(running.backend.open(chat(SQL.engine_name, stream=True)))
        await first.until(lambda: len(first.calls) == 1)
        await first.until(lambda: core_checks(first) == 1)  # that is how far it went
        gate.set()
        reply = await waiting
        assert b"".join([part async for part in reply.body]).endswith(b"data: [DONE]\n\n")
        assert (len(first.calls), len(second.calls), first.gone) == (1, 0, 0)

    check(scenario, ProgrammableEngine(), ProgrammableEngine(), **AT_ONCE)


def test_a_call_that_takes_long_everywhere_is_moved_once() -> None:
    async def scenario(running: Running) -> None:
        for engine in running.engines:
            engine.order(hang, hang)
        waiting = asyncio.create_task(running.backend.open(chat()))
        first, second = await taken(running)
        await second.until(lambda: len(second.calls) == 1)
        await second.until(lambda: core_checks(second) >= 3)  # stood still again and again
        assert (len(first.calls), len(second.calls), second.gone) == (1, 1, 0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    check(scenario, ProgrammableEngine(), ProgrammableEngine(), **AT_ONCE)


def test_an_engine_whose_counters_move_keeps_its_calls_however_long_they_take() -> None:
    async def scenario(running: Running) -> None:
        for engine in running.engines:
            engine.works = True
            engine.order(hang)
        waiting = asyncio.create_task(running.backend.open(chat()))
        first, second = await taken(running)
        looks = first.tokens
        await first.until(lambda: first.tokens > looks + 20)
        assert running.status(first).problem is None
        assert (len(first.calls), len(second.calls)) == (1, 0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)

    check(scenario, ProgrammableEngine(), ProgrammableEngine(), **AT_ONCE)


def test_a_slow_reader_of_an_answer_is_no_engine_that_stands_still() -> None:
    async def scenario(running: Running) -> None:
        gate = asyncio.Event()
        running.first.order(stream(FIRST, gate, *REST))
        reply = await running.backend.open(chat(stream=True))
        checks = running.first.health_checks
        await running.first.until(lambda: running.first.health_checks > checks + 20)
        assert core_checks(running.first) == 0
        gate.set()
        await close(reply)

    check(scenario, **AT_ONCE)


def core_checks(engine: ProgrammableEngine) -> int:
    """How often it was asked for one token, to see whether it answers anything."""
    return sum(one.headers.get("x-request-id", "").startswith("branchline-core.") for one in engine.seen)


def test_an_engine_that_is_only_slow_stays_up() -> None:
    async def scenario(running: Running) -> None:
        running.first.order(hang)
        waiting = asyncio.create_task(running.backend.open(chat()))
        await running.first.until(lambda: len([seen for seen in running.first.seen if seen.is_ours]) >= 2)
        assert running.status().state == "up"
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting

    check(scenario, stall_seconds=0.02)


@pytest.mark.parametrize(
    ("wrong", "problem"),
    [
        ({"models": ["other", "another"]}, "serves other, another, expected base"),
        ({"models": None}, "answers 200 to /v1/models, expected a list of models"),
        ({"key": "another"}, "refuses Branchline's key"),
        ({"health": 401}, "refuses Branchline's key"),
        ({"facts": {"base_fingerprint": "0" * 64}}, "fingerprint 0000000000000000, expected ffffffffffffffff"),
        ({"facts": {"resolves": False}}, "has Branchline's guard but not its resolver"),
        ({"health": 404}, "it answers 404 to /health"),
    ],
)
def test_an_engine_that_is_not_what_was_expected_gets_no_calls(wrong: dict[str, object], problem: str) -> None:
    odd = ProgrammableEngine()
    for name, value in wrong.items():
        setattr(odd, name, value)

    async def scenario(running: Running) -> None:
        status = running.status(odd)
        assert status.state == "down"
        assert problem in (status.problem or "")
        assert running.backend.base_fingerprint == "f" * 64
        for _ in range(3):
            await running.backend.open(chat())
        assert not odd.calls

    check(scenario, ProgrammableEngine(), odd)


class RestartingKeeper:
    """Keeps a programmable engine as Branchline keeps its own: a new start on demand, at another address."""

    def __init__(self, engine: ProgrammableEngine, spare: ProgrammableEngine) -> None:
        self.engine, self.spare = engine, spare
        self.state: Literal["starting", "up", "down"] = "up"
        self.problem: str | None = None
        self.generation = 1
        self.asked: list[str] = []

    key = "k"

    @property
    def url(self) -> str:
        return self.engine.url

    def restart(self, why: str) -> None:
        self.asked.append(why)
        self.engine, self.generation = self.spare, self.generation + 1


def test_a_managed_engine_that_hangs_is_restarted_and_catches_up() -> None:
    async def run() -> None:
        async with engines(ProgrammableEngine(), ProgrammableEngine(started="again")) as (old, new):
            keeper = RestartingKeeper(old, new)
            backend = VllmBackend(
                BASE_ID,
                [Engine("vllm", keeper, keeper=keeper)],
                rhythm=replace(CALM, stall_seconds=0.05, core_seconds=0.05),
                base_fingerprint="f" * 64,
            )
            await backend.start()
            running = Running(backend, [old, new])
            await running.load(SQL)
            old.core_hangs = True
            with pytest.raises(EngineUnavailable):
                await backend.open(chat())
            await running.until(lambda: (backend.engines[0].restarts, backend.engines[0].resident) == (1, 1))
            assert keeper.asked == ["it hung"]
            await close(await backend.open(chat(SQL.engine_name)))
            assert [seen.body["model"] for seen in new.calls] == [SQL.engine_name]
            keeper.state, keeper.problem = "down", "vLLM ended: out of memory"
            backend.look()
            await running.until(lambda: backend.engines[0].state == "down")
            assert backend.engines[0].problem == "vLLM ended: out of memory"
            await backend.stop()

    asyncio.run(run())
