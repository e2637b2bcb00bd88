"""What engines hold: loads that are proved, engines that catch up, versions that were forgotten."""

from __future__ import annotations

import asyncio
import json

import pytest

from router.errors import AdapterUnavailable, NotApplied
from tests.programmable_engine import BASE_ID, ProgrammableEngine
from tests.vllm_backends import STORE, Running, chat, check, version

SQL, REGEX = version(1), version(2, "regex")


def two() -> tuple[ProgrammableEngine, ProgrammableEngine]:
    return ProgrammableEngine(), ProgrammableEngine()


def test_a_version_is_proved_on_every_engine_before_it_takes_calls() -> None:
    async def scenario(running: Running) -> None:
        assert not running.backend.is_resident(SQL.engine_name)
        await running.load(SQL)
        assert running.backend.is_resident(SQL.engine_name)
        assert [status.resident for status in running.backend.engines] == [1, 1]
        assert all(SQL.engine_name in engine.loaded and not engine.calls for engine in running.engines)

    check(scenario, *two())


def test_a_version_that_one_engine_does_not_apply_is_nowhere() -> None:
    async def scenario(running: Running) -> None:
        running.engines[1].inert.add(SQL.engine_name)
        with pytest.raises(NotApplied):
            await running.load(SQL)
        assert not running.backend.is_resident(SQL.engine_name)
        with pytest.raises(AdapterUnavailable):
            await running.backend.open(chat(SQL.engine_name))
        running.engines[1].inert.clear()
        await running.load(SQL)
        await running.backend.open(chat(SQL.engine_name))

    check(scenario, *two())


def test_an_engine_that_cannot_load_a_version_does_not_keep_the_others_from_it() -> None:
    async def scenario(running: Running) -> None:
        running.first.broken.add(SQL.engine_name)
        await running.load(SQL)
        for _ in range(4):
            await running.backend.open(chat(SQL.engine_name))
        assert [len(engine.calls) for engine in running.engines] == [0, 4]
        running.first.broken.clear()
        await running.until(lambda: running.status(running.first).resident == 1)

    check(scenario, *two())


def test_a_version_that_no_engine_can_load_is_unavailable() -> None:
    async def scenario(running: Running) -> None:
        for engine in running.engines:
            engine.broken.add(SQL.engine_name)
        with pytest.raises(AdapterUnavailable, match="cannot be loaded"):
            await running.load(SQL)
        assert not running.backend.is_resident(SQL.engine_name)

    check(scenario, *two())


def test_a_rank_that_the_engine_does_not_take_is_named() -> None:
    async def scenario(running: Running) -> None:
        with pytest.raises(AdapterUnavailable, match="has rank 4, the engine takes at most 2"):
            await running.load(SQL)
        assert not running.first.seen

    check(scenario, ProgrammableEngine(max_lora_rank=2))


def test_an_engine_that_restarts_catches_up_before_it_takes_calls_for_a_version() -> None:
    async def scenario(running: Running) -> None:
        await running.load(SQL, REGEX)
        await running.backend.open(chat(SQL.engine_name))
        second = running.engines[1]
        await second.kill()
        await running.until(lambda: running.status(second).state == "down")
        for name in (SQL.engine_name, REGEX.engine_name, BASE_ID):
            await running.backend.open(chat(name))
        await second.restart()
        second.seen.clear()
        await running.until(lambda: (running.status(second).restarts, running.status(second).resident) == (1, 2))
        assert not [seen for seen in second.calls if seen.body["model"] != BASE_ID]
        first_asked = list(dict.fromkeys(seen.body["model"] for seen in second.seen if "prompt" in seen.body))
        assert first_asked == [REGEX.engine_name, SQL.engine_name]  # the most recently used first

    check(scenario, *two())


def test_a_new_start_behind_the_same_address_is_noticed_by_what_the_engine_says() -> None:
    async def scenario(running: Running) -> None:
        await running.load(SQL)
        running.first.forget()
        running.first.seen.clear()
        await running.until(lambda: running.status().restarts == 1 and running.status().resident == 1)
        assert SQL.engine_name in running.first.loaded
        assert not running.first.calls

    check(scenario)
    check(scenario, ProgrammableEngine(plugin=False))


def test_an_engine_without_the_plugin_is_told_where_versions_lie() -> None:
    async def scenario(running: Running) -> None:
        await running.load(SQL)
        assert running.first.loaded == {SQL.engine_name: f"{STORE}/sql/{SQL.digest}"}
        await running.backend.unload(SQL.engine_name)
        await running.load(SQL)
        await running.backend.open(chat(SQL.engine_name))
        assert [seen.path for seen in running.first.seen].count("/v1/load_lora_adapter") == 1

    check(scenario, ProgrammableEngine(plugin=False))


def test_an_engine_without_the_plugin_that_takes_no_adapters_says_what_to_set() -> None:
    closed = ProgrammableEngine(plugin=False)
    closed.takes_adapters = False

    async def scenario(running: Running) -> None:
        with pytest.raises(AdapterUnavailable, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=1") as refused:
            await running.load(SQL)
        assert "127.0.0.1" not in refused.value.message  # /ready shows it to everybody

    check(scenario, closed)


def test_what_an_engine_says_of_a_folder_it_cannot_load_bears_no_path() -> None:
    async def scenario(running: Running) -> None:
        running.first.broken.add(SQL.engine_name)
        with pytest.raises(AdapterUnavailable, match="No adapter found for <path>") as refused:
            await running.load(SQL)
        assert STORE not in refused.value.message

    check(scenario, ProgrammableEngine(plugin=False))


def test_a_name_that_an_engine_without_the_plugin_forgot_is_loaded_again_for_the_call() -> None:
    async def scenario(running: Running) -> None:
        await running.load(SQL)
        running.first.forget()
        reply = await running.backend.open(chat(SQL.engine_name))
        assert json.loads(await anext(reply.body))["model"] == SQL.engine_name

    check(scenario, ProgrammableEngine(plugin=False), look_seconds=600.0)


def test_a_name_that_every_engine_forgot_is_unavailable_not_the_clients_fault() -> None:
    async def scenario(running: Running) -> None:
        await running.load(SQL)
        running.first.unknown.add(SQL.engine_name)
        with pytest.raises(AdapterUnavailable):
            await running.backend.open(chat(SQL.engine_name))
        assert not running.backend.is_resident(SQL.engine_name)
        running.first.unknown.clear()
        await running.until(lambda: running.backend.is_resident(SQL.engine_name))

    check(scenario)


def test_a_version_that_left_the_engines_memory_is_warmed_up_by_us() -> None:
    async def scenario(running: Running) -> None:
        versions = [version(number) for number in range(1, 4)]
        await running.load(*versions)
        assert [running.backend.is_resident(one.engine_name) for one in versions] == [False, True, True]
        running.first.seen.clear()
        await running.load(versions[0])
        assert [(seen.body["model"], seen.is_ours) for seen in running.first.seen] == [(versions[0].engine_name, True)]
        assert [running.backend.is_resident(one.engine_name) for one in versions] == [True, False, True]

    check(scenario, ProgrammableEngine(max_cpu_loras=2))


def test_a_load_goes_on_when_who_waits_for_it_goes_away() -> None:
    async def scenario(running: Running) -> None:
        gate = asyncio.Event()
        running.first.gate = gate
        waiting = asyncio.create_task(running.load(SQL))
        await running.first.until(lambda: len(running.first.seen) == 1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        again = asyncio.create_task(running.load(SQL))
        gate.set()
        await again
        assert running.first.gone == 0
        assert len([seen for seen in running.first.seen if seen.body.get("prompt")]) == 1

    check(scenario)
