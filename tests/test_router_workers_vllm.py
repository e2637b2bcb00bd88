"""Workers open their calls to vLLM engines by themselves, which are as the parent tells; loads stay the parent's."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import httpx
import pytest

from adapters.home import Home
from adapters.registry import Registry
from router.backends.vllm.followed import FollowedEngines
from router.backends.vllm.told import ToldEngines, WorkOfEngines
from router.errors import AdapterUnavailable, EngineFailed, EngineUnavailable
from router.workers.shapes import shape
from tests.gateway_parts import make_stock
from tests.gateway_process import branchline, serving
from tests.programmable_engine import (
    BASE_ID,
    DEADLINE,
    ProgrammableEngine,
    answer,
    error,
    frames,
    hang,
    in_turn,
    reset,
    stream,
)
from tests.vllm_backends import Running, chat, check, taken, version
from tests.worker_processes import stopped, workers_of

SQL = version(1)
UNKNOWN = error(404, f"The model `{SQL.engine_name}` does not exist.", "NotFoundError", "model")


@dataclass(slots=True)
class Worker:
    """A worker's engines, which follow a backend's as over a channel."""

    running: Running
    engines: FollowedEngines
    followed: int = 0

    def follow(self) -> None:
        told = shape(ToldEngines).dump_json(self.running.backend.told())
        self.engines.follow(shape(ToldEngines).validate_json(told))
        self.followed += 1

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(DEADLINE):
            while not holds():
                await self.running.backend.until_changed()
                self.follow()

    async def text(self, name: str = SQL.engine_name) -> bytes:
        reply = await self.engines.open(chat(name))
        return b"".join([piece async for piece in reply.body])


def worker_check(scenario: Callable[[Worker], Awaitable[None]], *programmable: ProgrammableEngine) -> None:
    """Run `scenario` with all engines up and `SQL` resident."""

    @asynccontextmanager
    async def beside(running: Running) -> AsyncIterator[Worker]:
        worker = Worker(running, FollowedEngines(BASE_ID, running.backend.lacks))
        worker.follow()
        try:
            yield worker
        finally:
            await worker.engines.close()

    async def run(running: Running) -> None:
        await running.load(SQL)
        async with beside(running) as worker:
            await scenario(worker)

    check(run, *programmable)


def test_a_worker_calls_the_engines_itself_with_their_key() -> None:
    async def scenario(worker: Worker) -> None:
        assert SQL.engine_name.encode() in await worker.text()
        assert b"[base]" in await worker.text(BASE_ID)
        assert worker.running.backend.running == 0
        assert len(worker.running.first.calls) == 2

    worker_check(scenario)


def test_what_is_not_held_is_refused_without_a_call() -> None:
    async def scenario(worker: Worker) -> None:
        with pytest.raises(AdapterUnavailable):
            await worker.text("sql@9.0123456789abcdef")
        await worker.running.backend.unload(SQL.engine_name)
        worker.follow()
        with pytest.raises(AdapterUnavailable):
            await worker.text()
        assert worker.running.first.calls == []

    worker_check(scenario)


def test_a_call_that_one_engine_fails_at_is_answered_by_the_other() -> None:
    async def scenario(worker: Worker) -> None:
        await worker.text()
        favourite, other = sorted(worker.running.engines, key=lambda engine: -len(engine.calls))
        favourite.order(reset, reset)  # twice: a broken connection is tried again
        assert SQL.engine_name.encode() in await worker.text()
        assert len(other.calls) == 1

    worker_check(scenario, ProgrammableEngine(), ProgrammableEngine())


def test_an_engine_that_is_drained_or_down_gets_no_call() -> None:
    async def scenario(worker: Worker) -> None:
        first, second = worker.running.engines
        await worker.running.backend.drain(worker.running.name(first))
        worker.follow()
        for _ in range(6):
            await worker.text()
        assert (len(first.calls), len(second.calls)) == (0, 6)
        await second.kill()
        await worker.until(lambda: worker.running.status(second).state == "down")
        with pytest.raises(AdapterUnavailable):
            await worker.text()
        with pytest.raises(EngineUnavailable):
            await worker.text(BASE_ID)

    worker_check(scenario, ProgrammableEngine(), ProgrammableEngine())


def test_a_restarted_engine_is_called_once_its_versions_are_there_again() -> None:
    async def scenario(worker: Worker) -> None:
        engine = worker.running.first
        await engine.restart()
        await worker.until(lambda: worker.running.status().restarts == 1 and worker.running.status().resident == 1)
        assert SQL.engine_name.encode() in await worker.text()

    worker_check(scenario)


async def text_once_loaded(worker: Worker) -> bytes:
    """The parent looks at the engine while calls come: one between two looks may still be refused."""
    async with asyncio.timeout(DEADLINE):
        while True:
            worker.follow()
            try:
                return await worker.text()
            except AdapterUnavailable:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("plugin", [True, False])
def test_an_engine_that_says_it_lacks_a_version_has_it_loaded_again_by_the_parent(plugin: bool) -> None:
    async def scenario(worker: Worker) -> None:
        engine = worker.running.first
        loads = len(engine.seen)
        if plugin:
            engine.order(UNKNOWN)
            with pytest.raises(AdapterUnavailable):
                await worker.text()
        else:
            engine.forget()
        assert SQL.engine_name.encode() in await text_once_loaded(worker)
        assert len(engine.seen) > loads + 1

    worker_check(scenario, ProgrammableEngine(plugin=plugin))


@pytest.mark.parametrize("comes_back", [False, True])
def test_answers_that_have_begun_end_when_the_parent_finds_their_engine_hanging(comes_back: bool) -> None:
    async def scenario(worker: Worker) -> None:
        never = asyncio.Event()
        worker.running.first.order(stream(*frames(SQL.engine_name)[:1], never))
        reply = await worker.engines.open(chat(SQL.engine_name, stream=True))
        await anext(reply.body)
        replica = worker.running.backend._pool.replicas[0]
        identity = replica.identity
        replica.went("down", "it hangs", end_streams=True)  # as `Watch` does
        if comes_back:  # before workers are told of the former
            assert identity is not None
            replica.came_up(identity)
        worker.follow()
        with pytest.raises(EngineFailed):
            async with asyncio.timeout(DEADLINE):
                await anext(reply.body)

    worker_check(scenario)


def test_a_call_that_waits_for_an_engine_which_stands_still_is_moved_by_the_worker() -> None:
    async def scenario(worker: Worker) -> None:
        act = in_turn(hang, answer(b'{"choices": []}'))
        for engine in worker.running.engines:
            engine.order(act)
        text = asyncio.create_task(worker.text())
        await taken(worker.running)
        worker.running.backend.works(1, worker.engines.work())
        still = next(one for one in worker.running.backend._pool.replicas if one.traffic.waiting)
        still.stall()  # as `Watch` does, which asks `waiting`
        worker.follow()
        assert await text == b'{"choices": []}'
        worker.running.backend.works(1, worker.engines.work())
        assert still.traffic.waiting == 0

    worker_check(scenario, ProgrammableEngine(), ProgrammableEngine())


def test_the_parent_counts_what_engines_work_on_for_workers_until_they_are_gone() -> None:
    async def scenario(worker: Worker) -> None:
        gate = asyncio.Event()
        worker.running.first.order(stream(*frames(SQL.engine_name)[:1], gate))
        reply = await worker.engines.open(chat(SQL.engine_name, stream=True))
        await anext(reply.body)
        worker.running.backend.works(1, worker.engines.work())
        assert worker.running.status().outstanding == 1
        worker.running.backend.works(1, {})
        assert worker.running.status().outstanding == 0
        gate.set()

    worker_check(scenario)


def test_what_workers_use_is_not_taken_for_what_an_engine_evicts() -> None:
    async def scenario(worker: Worker) -> None:
        running, replica = worker.running, worker.running.backend._pool.replicas[0]
        await running.load(version(2))
        worker.follow()
        await worker.text()  # the first one is now the one that was used last
        running.backend.works(
            1, shape(WorkOfEngines).validate_json(shape(WorkOfEngines).dump_json(worker.engines.work()))
        )
        await running.load(version(3))
        assert [replica.has(version(number).engine_name) for number in (1, 2, 3)] == [True, False, True]
        assert running.backend.told().held[-2] == SQL.engine_name
        assert worker.engines.work()[running.name(running.first)].used == ()

    worker_check(scenario, ProgrammableEngine(max_cpu_loras=2))


# -- with processes --------------------------------------------------------------------------------------------------


@contextmanager
def two_engines(fingerprint: str) -> Iterator[tuple[ProgrammableEngine, ProgrammableEngine]]:
    """Listening, on an event loop in a thread of their own."""
    pair = (ProgrammableEngine(base_fingerprint=fingerprint), ProgrammableEngine(base_fingerprint=fingerprint))
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    try:
        for engine in pair:
            asyncio.run_coroutine_threadsafe(engine.start(), loop).result(DEADLINE)
        yield pair
    finally:
        for engine in pair:
            asyncio.run_coroutine_threadsafe(engine.kill(), loop).result(DEADLINE)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(DEADLINE)
        loop.close()


@pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")
def test_a_gateway_of_workers_serves_from_engines_and_all_its_workers_know_their_state(tmp_path: Path) -> None:
    stock = make_stock(tmp_path, versions=1)
    with two_engines(stock.base.fingerprint) as (first, second):
        words = (
            "--backend",
            "vllm",
            "--base",
            BASE_ID,
            "--engine",
            first.url,
            "--engine",
            second.url,
            "--workers",
            "2",
        )
        with serving(stock.home, *words, variables={"BRANCHLINE_ENGINE_API_KEY": "k"}) as gateway:
            said = branchline("route", "promote", "sql@1", "--force", "a test", home=stock.home)
            assert "in force on 1 of 1 gateways" in said
            body = {"model": "sql", "messages": [{"role": "user", "content": "hello"}]}
            names = [one["name"] for one in httpx.get(f"{gateway.url}/admin/v1/engines").json()["engines"]]
            for place, pid in enumerate(workers_of(gateway.process.pid)):
                others = [one for one in workers_of(gateway.process.pid) if one != pid]
                with stopped(*others):
                    httpx.post(f"{gateway.url}/admin/v1/engines/{names[place]}/drain")
                    answer = httpx.post(f"{gateway.url}/v1/chat/completions", json=body)
                    assert answer.headers["x-branchline-version"] == "1"
                    httpx.post(f"{gateway.url}/admin/v1/engines/{names[place]}/resume")
            assert first.calls
            assert second.calls
            assert {one.body["model"] for one in first.calls + second.calls} == {engine_name(stock.home)}
        assert "Traceback" not in gateway.output


def engine_name(home: Path) -> str:
    registry = Registry.open(Home.at(home).registry_url)
    try:
        return registry.version("sql", 1).engine_name
    finally:
        registry.close()
