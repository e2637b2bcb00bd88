"""Which versions come into an engine with limited room, in which order, and what waits for what."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

import router.following.warming
from adapters.examples import add_examples
from adapters.home import Home
from adapters.probes import NO_PROBES
from adapters.registry import Registry
from adapters.store import Store
from router.background import Background
from tests.gateway_parts import ScriptedEngine, Stock, client_request, make_stock, running

NAMES = ("a", "b", "c")  # routes beside `sql` and `regex`


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """Two routes with versions, and three that share bytes with them."""
    return make_stock(tmp_path_factory.mktemp("stock"), versions=2, routes=("sql", "regex", *NAMES))


@pytest.fixture
def home(stock: Stock, tmp_path: Path) -> Home:
    return stock.copy(tmp_path / "home")


def promote_all(home: Home, *refs: str, disable: tuple[str, ...] = ()) -> None:
    registry = Registry.open(home.registry_url)
    for ref in refs:
        route, _, number = ref.partition("@")
        registry.promote(route, int(number), forced="a test")
    for route in disable:
        registry.disable(route)
    registry.close()


# -- a start ----------------------------------------------------------------------------------------------------------


def test_a_start_loads_live_versions_before_previous_ones_and_of_these_what_changed_last_first(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.following.warming, "BACKLOG_WORKERS", 1)
    promote_all(home, "sql@1", "sql@2", "regex@1", "a@1", "a@2", "b@1", disable=("b",))

    async def scenario() -> None:
        async with running(home, stock.base) as gateway:
            assert gateway.engine.script.loads == ["a@2", "regex@1", "sql@2", "b@1", "a@1", "sql@1"]

    asyncio.run(scenario())


def test_a_start_ends_where_the_engine_is_full_and_the_rest_comes_on_demand(home: Home, stock: Stock) -> None:
    promote_all(home, "sql@1", "sql@2", "regex@1", "a@1", "b@1", "c@1")

    async def scenario() -> None:
        async with running(home, stock.base, engine=ScriptedEngine(stock.base, room=3)) as gateway:
            assert sorted(gateway.engine.script.loads) == ["a@1", "b@1", "c@1"]
            assert gateway.catalog.warming == []
            assert gateway.decide("sql").reason == "adapter_unavailable"
            answer = await gateway.dispatcher.answer(client_request("sql"), "r-1")
            await answer.reply.body.aclose()  # type: ignore[attr-defined]  # AsyncIterator's type has no aclose
            assert answer.decision.reason == "adapter_unavailable"
            await gateway.until(lambda: gateway.in_force("sql") == 2, "the version that was asked for")
            assert gateway.engine.script.loads.count("sql@1") == 0
            assert gateway.in_force("regex") is None

    asyncio.run(scenario())


def test_a_start_has_only_a_few_loads_under_way_at_a_time(home: Home, stock: Stock) -> None:
    promote_all(home, "sql@1", "regex@1", "a@1", "b@1", "c@1")

    async def scenario() -> None:
        engine = ScriptedEngine(stock.base)
        engine.script.hold("c@1", "b@1", "a@1", "sql@1", "regex@1")
        async with running(home, stock.base, engine=engine, settle=False) as gateway:
            await gateway.until(lambda: len(engine.script.loads) == 2, "two loads")
            await gateway.catalog.settled(0.05)
            assert sorted(engine.script.loads) == ["b@1", "c@1"]
            assert sorted(gateway.catalog.warming) == ["a", "b", "c", "regex", "sql"]
            for ref in ("b@1", "a@1", "c@1", "regex@1", "sql@1"):
                engine.script.release(ref)
            await gateway.catalog.settled()
            assert [gateway.in_force(route) for route in ("sql", "regex", *NAMES)] == [1] * 5

    asyncio.run(scenario())


@pytest.mark.parametrize("how", ["promote", "ask"])
def test_what_changes_or_is_asked_for_passes_a_backlog_that_hangs(home: Home, stock: Stock, how: str) -> None:
    promote_all(home, "sql@1", "regex@1", "a@1", "b@1")

    async def scenario() -> None:
        engine = ScriptedEngine(stock.base)
        engine.script.hold("b@1", "a@1")
        async with running(home, stock.base, engine=engine, settle=False) as gateway:
            await gateway.until(lambda: len(engine.script.loads) == 2, "a backlog that hangs")
            if how == "promote":
                await gateway.promoted("sql", 2)
            else:
                await gateway.catalog.until_warm("sql", timeout_seconds=30)
                assert gateway.in_force("sql") == 1

    asyncio.run(scenario())


def test_what_the_backlog_no_longer_needs_is_passed_over(home: Home, stock: Stock) -> None:
    promote_all(home, "sql@1", "regex@1", "a@1")

    async def scenario() -> None:
        engine = ScriptedEngine(stock.base)
        engine.script.hold("a@1", "regex@1")
        async with running(home, stock.base, engine=engine, settle=False) as gateway:
            await gateway.until(lambda: len(engine.script.loads) == 2, "a backlog that hangs")
            await gateway.applied(gateway.registry.retire("sql", 1).event.serial)
            for ref in ("a@1", "regex@1"):
                engine.script.release(ref)
            await gateway.catalog.settled()
            assert "sql@1" not in engine.script.loads

    asyncio.run(scenario())


def test_of_many_that_are_asked_for_only_a_few_come_in_at_a_time_and_a_change_passes_them(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.following.warming, "DEMANDS_AT_ONCE", 2)
    promote_all(home, "regex@1", "a@1", "b@1", "c@1")

    async def scenario() -> None:
        engine = ScriptedEngine(stock.base, room=0)
        engine.script.hold("a@1", "b@1", "c@1")
        async with running(home, stock.base, engine=engine) as gateway:
            waiting = [asyncio.create_task(gateway.catalog.until_warm(name, timeout_seconds=30)) for name in NAMES]
            await gateway.until(lambda: len(engine.script.loads) == 2, "two loads")
            await gateway.promoted("sql", 2)
            assert sorted(engine.script.loads) == ["a@1", "b@1", "sql@2"]
            for ref in ("c@1", "b@1", "a@1"):
                engine.script.release(ref)
            await asyncio.gather(*waiting)
            assert [gateway.in_force(name) for name in NAMES] == [1, 1, 1]

    asyncio.run(scenario())


# -- what the engine lost ---------------------------------------------------------------------------------------------


def test_a_version_that_the_engine_evicted_stays_in_force_and_comes_back_on_demand(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2)]) as gateway:
            for number in (1, 2):
                gateway.engine.lose(gateway.engine_name("sql", number))
            assert gateway.in_force("sql") == 2
            await gateway.catalog.until_warm("sql", timeout_seconds=30)
            assert gateway.engine.is_resident(gateway.engine_name("sql", 2))
            assert gateway.engine.script.loads[2:] == ["sql@2"]

    asyncio.run(scenario())


def test_the_old_version_that_answers_for_one_not_applied_comes_back_too(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            gateway.engine.script.faults["sql@2"] = "sql@2 changes nothing"
            gateway.engine.script.unapplied.add("sql@2")
            await gateway.applied(gateway.promote("sql", 2))
            await gateway.catalog.settled()
            gateway.engine.lose(gateway.engine_name("sql", 1))
            await gateway.catalog.until_warm("sql", timeout_seconds=30)
            assert gateway.decide("sql").version == 1
            assert gateway.engine.is_resident(gateway.engine_name("sql", 1))
            assert gateway.catalog.problems == {"sql": "sql@2 changes nothing"}

    asyncio.run(scenario())


def test_a_problem_goes_away_where_the_engine_finds_the_version_again_by_itself(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.following.warming, "RETRY_SECONDS", 0.02)

    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            gateway.engine.script.faults["sql@1"] = "no engine is up"
            gateway.engine.lose(gateway.engine_name("sql", 1))
            await gateway.catalog.until_warm("sql", timeout_seconds=30)
            assert gateway.catalog.problems == {"sql": "no engine is up"}
            gateway.engine.find(gateway.engine_name("sql", 1))
            await gateway.until(lambda: gateway.catalog.problems == {}, "no problem")
            assert gateway.decide("sql").version == 1

    asyncio.run(scenario())


def test_what_cannot_be_brought_in_is_tried_ever_more_rarely_until_the_route_changes(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.following.warming, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(router.following.warming, "LONGEST_RETRY_SECONDS", 0.004)
    pauses: list[float] = []
    later = Background.later

    def noted(self: Background, seconds: float, act: Callable[..., object], *args: object) -> asyncio.TimerHandle:
        if getattr(act, "__name__", "") == "_try_again":
            pauses.append(seconds)
        return later(self, seconds, act, *args)

    monkeypatch.setattr(Background, "later", noted)

    async def scenario() -> None:
        async with running(home, stock.base) as gateway:
            gateway.engine.script.faults |= {"sql@1": "changes nothing", "sql@2": "changes nothing"}
            gateway.promote("sql", 1)
            await gateway.until(lambda: len(pauses) >= 5, "five tries")
            assert pauses[:5] == [0.001, 0.002, 0.004, 0.004, 0.004]
            before = len(pauses)
            gateway.promote("sql", 2)
            await gateway.until(lambda: 0.001 in pauses[before:], "a try soon after the change")

    asyncio.run(scenario())


def test_a_change_of_policy_loads_nothing_again(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            gateway.engine.lose(gateway.engine_name("sql", 1))
            change = gateway.registry.change_route("sql", policy={"cold_wait_ms": 5})
            await gateway.applied(change.event.serial)
            await gateway.catalog.settled()
            assert gateway.engine.script.loads == ["sql@1"]
            assert gateway.catalog.snapshot.routes["sql"].cold_wait_ms == 5

    asyncio.run(scenario())


# -- probes -----------------------------------------------------------------------------------------------------------


def test_a_load_is_proved_with_the_routes_own_examples(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base) as gateway:
            add_examples(gateway.registry, "sql", ["select all users"], source="a test")
            await gateway.promoted("sql", 1)
            assert gateway.engine.script.probes["sql@1"].texts == ("select all users",)

    asyncio.run(scenario())


def test_where_the_registry_does_not_answer_a_version_comes_back_without_its_examples(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            gateway.engine.lose(gateway.engine_name("sql", 1))
            with closing(sqlite3.connect(home.folder / "registry.db", isolation_level=None)) as database:
                database.execute("ALTER TABLE examples RENAME TO hidden")
                await gateway.catalog.until_warm("sql", timeout_seconds=30)
            assert gateway.engine.is_resident(gateway.engine_name("sql", 1))
            assert gateway.engine.script.probes["sql@1"] == NO_PROBES

    asyncio.run(scenario())


def test_where_no_engine_is_up_no_files_are_read(home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(router.following.warming, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(Store, "verify_version", lambda _store, version: read.append(str(version.ref)))

    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            assert read == ["sql@1"]
            await gateway.engine.stop()
            gateway.promote("sql", 2)
            await gateway.until(lambda: "no engine is up" in gateway.catalog.problems.get("sql", ""), "the problem")
            assert read == ["sql@1"]
            await gateway.engine.start()
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force by a later try")

    asyncio.run(scenario())
