"""The vLLM backend from start to stop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from adapters.errors import NotFound
from router.backends.vllm.engines import external_backend
from router.errors import AdapterUnavailable, ConfigInvalid, EngineFailed
from tests.backend_contract import idle
from tests.programmable_engine import BASE_ID, FINGERPRINT, ProgrammableEngine, engines, frames, hang, stream
from tests.vllm_backends import CALM, Running, backend_over, chat, check, version


def test_starts_when_a_first_engine_is_up() -> None:
    async def run() -> None:
        async with engines(ProgrammableEngine(max_cpu_loras=7)) as (engine,):
            backend = backend_over("http://127.0.0.1:1", engine.url)
            assert not await backend.ready()
            assert [status.state for status in backend.engines] == ["down", "down"]
            await backend.start()
            await backend.start()
            assert await backend.ready()
            assert (backend.base_id, backend.base_fingerprint, backend.capacity) == (BASE_ID, FINGERPRINT, 7)
            await backend.stop()
            await backend.stop()
            assert not await backend.ready()
            with pytest.raises(EngineFailed):
                await backend.open(chat())

    asyncio.run(run())


def test_where_no_engine_comes_up_each_is_named_with_its_problem() -> None:
    async def run() -> None:
        async with engines(ProgrammableEngine(key="other")) as (engine,):
            backend = external_backend(
                [engine.url, "http://127.0.0.1:1"], "k", base_id=BASE_ID, start_seconds=0.5, rhythm=CALM
            )
            with pytest.raises(EngineFailed) as failed:
                await backend.start()
        host = engine.url.removeprefix("http://")
        expected = f"no engine is up after 0.5 s: {host}: refuses Branchline's key; 127.0.0.1:1: it cannot be reached"
        assert failed.value.message == expected

    asyncio.run(run())


def test_the_base_is_unverified_where_no_engine_can_look_at_it() -> None:
    async def scenario(running: Running) -> None:
        assert running.backend.base_fingerprint is None
        assert running.status().base_fingerprint is None
        assert running.backend.capacity is None

    check(scenario, ProgrammableEngine(plugin=False))


def test_capacity_is_that_of_the_smallest_engine() -> None:
    async def scenario(running: Running) -> None:
        assert running.backend.capacity == 3

    check(
        scenario,
        ProgrammableEngine(max_cpu_loras=9),
        ProgrammableEngine(max_cpu_loras=3),
        ProgrammableEngine(plugin=False),
    )


def test_stop_ends_calls_that_wait_and_calls_that_stream() -> None:
    async def scenario(running: Running) -> None:
        running.first.order(stream(frames(BASE_ID)[0], asyncio.Event()), hang)
        reply = await running.backend.open(chat(stream=True))
        await anext(reply.body)
        waiting = asyncio.create_task(running.backend.open(chat()))
        await running.first.until(lambda: len(running.first.calls) >= 2)
        await running.backend.stop()
        with pytest.raises(EngineFailed):
            await anext(reply.body)
        with pytest.raises(EngineFailed):
            await waiting
        await idle(running.backend)

    check(scenario)


def test_a_reader_that_waits_for_the_next_piece_hears_of_the_stop() -> None:
    async def scenario(running: Running) -> None:
        running.first.order(stream(frames(BASE_ID)[0], asyncio.Event()))
        reply = await running.backend.open(chat(stream=True))
        await anext(reply.body)
        reading = asyncio.ensure_future(anext(reply.body))
        await asyncio.sleep(0)
        await running.backend.stop()
        with pytest.raises(EngineFailed, match="went down while it answered"):
            await reading
        with pytest.raises(EngineFailed):
            await anext(reply.body)

    check(scenario)


def test_an_engine_without_the_plugin_needs_to_be_told_where_it_sees_the_store() -> None:
    async def run() -> None:
        async with engines(ProgrammableEngine(plugin=False)) as (engine,):
            backend = external_backend([engine.url], "k", base_id=BASE_ID, rhythm=CALM)
            await backend.start()
            with pytest.raises(AdapterUnavailable, match="nobody said where it sees the store") as refused:
                await backend.load(version(1), Path("unused"))
            assert "127.0.0.1" not in refused.value.message
            await backend.stop()

    asyncio.run(run())


def test_stop_ends_loads() -> None:
    async def scenario(running: Running) -> None:
        running.first.gate = asyncio.Event()
        loading = asyncio.create_task(running.load(version(1)))
        await running.first.until(lambda: len(running.first.seen) == 1)
        await running.backend.stop()
        with pytest.raises(AdapterUnavailable):
            await loading

    check(scenario)


def test_an_answer_that_nobody_reads_is_no_work() -> None:
    async def scenario(running: Running) -> None:
        running.first.order(stream(frames(BASE_ID)[0], asyncio.Event()))
        reply = await running.backend.open(chat(stream=True))
        assert running.backend.running == 1
        del reply
        await running.first.until(lambda: running.first.gone == 1)
        assert running.backend.running == 0

    check(scenario)


def test_an_unloaded_version_is_refused_but_its_running_calls_finish() -> None:
    async def scenario(running: Running) -> None:
        sql = version(1)
        await running.load(sql)
        gate = asyncio.Event()
        first, *rest = frames(sql.engine_name, "hello")
        running.first.order(stream(first, gate, *rest))
        reply = await running.backend.open(chat(sql.engine_name, stream=True))
        await running.backend.unload(sql.engine_name)
        await running.backend.unload(sql.engine_name)
        assert not running.backend.is_resident(sql.engine_name)
        gate.set()
        assert b"".join([part async for part in reply.body]) == b"".join([first, *rest])
        assert not [seen for seen in running.first.seen if "unload" in seen.path]

    check(scenario)


def test_an_engine_is_drained_by_its_name() -> None:
    async def scenario(running: Running) -> None:
        with pytest.raises(NotFound, match="no engine 'x'"):
            await running.backend.drain("x")
        (status,) = running.backend.engines
        await running.backend.drain(status.name)
        await running.backend.drain(status.name)
        assert not await running.backend.ready()
        await running.backend.resume(status.name)
        assert await running.backend.ready()

    check(scenario)


@pytest.mark.parametrize(
    "urls",
    [
        [],
        ["127.0.0.1:8000"],
        ["ftp://host:1"],
        ["http://"],
        ["http://user:secret@host:1"],
        ["http://host:port"],
        ["http://host:1", "http://host:1"],
    ],
)
def test_what_is_no_engines_address_is_refused(urls: list[str]) -> None:
    with pytest.raises(ConfigInvalid, match=r"address|twice") as refused:
        external_backend(urls, None, base_id=BASE_ID)
    assert "secret" not in refused.value.message


def test_engines_are_called_by_host_and_port() -> None:
    backend = external_backend(["http://one:8000/", "https://two/vllm/"], None, base_id=BASE_ID)
    assert [status.name for status in backend.engines] == ["one:8000", "two/vllm"]
