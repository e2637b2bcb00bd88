"""The cold policy: how long a request waits for a version that the engine does not hold, and what ends the wait."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from adapters.classifiers import promote_classifier
from adapters.home import Home
from adapters.registry import Registry
from router.dispatch import Answer
from router.errors import ModelNotFound, RouteDisabled
from tests.gateway_parts import Gateway, ScriptedEngine, Stock, client_request, make_stock, running

LONG_MS = 60_000
Scenario = Callable[[Gateway], Awaitable[None]]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=2)


@pytest.fixture
def home(stock: Stock, tmp_path: Path) -> Home:
    return stock.copy(tmp_path / "home")


async def finished(answer: Answer) -> Answer:
    assert [piece async for piece in answer.reply.body]
    return answer


def facts(answer: Answer) -> tuple[str, str, str | None, int | None]:
    decision = answer.decision
    return decision.stage, decision.reason, decision.route, decision.version


BASE = ("base", "adapter_unavailable", "sql", None)


def cold(home: Home, stock: Stock, scenario: Scenario, *, wait_ms: int = LONG_MS) -> None:
    """Run `scenario` on a gateway where sql@1 is live, `cold_wait_ms` is set, and the engine does not hold it:
    its load waits for `release`.
    """

    async def run() -> None:
        engine = ScriptedEngine(stock.base)
        async with running(home, stock.base, live=[("sql", 1)], engine=engine) as gateway:
            gateway.registry.change_route("sql", policy={"cold_wait_ms": wait_ms})
            await gateway.applied(gateway.registry.serial())
            engine.script.hold("sql@1")
            engine.lose(gateway.engine_name("sql", 1))
            await scenario(gateway)

    asyncio.run(run())


async def asked(gateway: Gateway) -> asyncio.Task[Answer]:
    """A request that waits."""
    loads = len(gateway.engine.script.loads)
    task = asyncio.create_task(gateway.dispatcher.answer(client_request("sql"), "r-1"))
    await gateway.until(lambda: len(gateway.engine.script.loads) > loads or task.done(), "the load")
    assert not task.done()
    return task


def test_a_request_waits_for_the_version_and_is_answered_by_it(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        waiting = await asked(gateway)
        asked_at = time.perf_counter()
        await gateway.applied(gateway.registry.create_route("another").event.serial)  # something that takes a while
        waited = time.perf_counter() - asked_at
        gateway.engine.script.release("sql@1")
        answer = await finished(await waiting)
        assert facts(answer) == ("live", "pinned", "sql", 1)
        assert answer.overhead_seconds >= waited, "the wait is the gateway's"

    cold(home, stock, scenario)


def test_requests_that_wait_share_one_load(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        waiting = [await asked(gateway)]
        waiting += [asyncio.create_task(gateway.dispatcher.answer(client_request("sql"), f"r-{n}")) for n in range(8)]
        await asyncio.sleep(0)
        gateway.engine.script.release("sql@1")
        for one in waiting:
            assert facts(await finished(await one)) == ("live", "pinned", "sql", 1)
        assert gateway.engine.script.loads.count("sql@1") == 2  # at the start, and now

    cold(home, stock, scenario)


@pytest.mark.parametrize("wait_ms", [0, 10])
def test_after_the_wait_the_base_answers_and_the_load_goes_on(home: Home, stock: Stock, wait_ms: int) -> None:
    async def scenario(gateway: Gateway) -> None:
        assert facts(await finished(await gateway.dispatcher.answer(client_request("sql"), "r-1"))) == BASE
        gateway.engine.script.release("sql@1")
        name = gateway.engine_name("sql", 1)
        await gateway.until(lambda: gateway.engine.is_resident(name), "the load's end")
        assert facts(await finished(await gateway.dispatcher.answer(client_request("sql"), "r-2")))[0] == "live"

    cold(home, stock, scenario, wait_ms=wait_ms)


def test_the_wait_ends_where_the_load_fails_and_the_next_request_does_not_wait_for_another_try(
    home: Home, stock: Stock
) -> None:
    async def scenario(gateway: Gateway) -> None:
        waiting = await asked(gateway)
        gateway.engine.script.faults["sql@1"] = "out of memory"
        gateway.engine.script.release("sql@1")
        assert facts(await finished(await waiting)) == BASE
        assert gateway.catalog.problems == {"sql": "out of memory"}
        loads = len(gateway.engine.script.loads)
        assert facts(await finished(await gateway.dispatcher.answer(client_request("sql"), "r-2"))) == BASE
        assert len(gateway.engine.script.loads) == loads

    cold(home, stock, scenario)


def test_the_wait_ends_where_the_route_is_disabled_and_that_decision_counts(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        waiting = await asked(gateway)
        gateway.registry.disable("sql")
        assert facts(await finished(await waiting)) == ("base", "route_disabled", "sql", None)

    cold(home, stock, scenario)


def test_a_route_disabled_with_an_error_meanwhile_is_an_error(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        gateway.registry.change_route("sql", policy={"on_disabled": "error"})
        waiting = await asked(gateway)
        gateway.registry.disable("sql")
        with pytest.raises(RouteDisabled):
            await waiting

    cold(home, stock, scenario)


@pytest.mark.parametrize("change", ["disable", "retire"])
def test_a_version_asked_for_by_number_is_not_answered_by_once_it_was_taken_away(
    home: Home, stock: Stock, change: str
) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2)]) as gateway:
            gateway.engine.lose(gateway.engine_name("sql", 1))
            gateway.engine.script.hold("sql@1")
            waiting = asyncio.create_task(gateway.dispatcher.answer(client_request("sql@1"), "r-1"))
            await gateway.until(lambda: gateway.engine.script.loads[-1] == "sql@1", "the load")
            registry = gateway.registry
            done = registry.disable("sql") if change == "disable" else registry.retire("sql", 1)
            await gateway.applied(done.event.serial)
            gateway.engine.script.release("sql@1")
            with pytest.raises(RouteDisabled if change == "disable" else ModelNotFound):
                await waiting

    asyncio.run(scenario())


def test_the_wait_ends_with_the_version_that_a_promotion_meanwhile_brought_in(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        waiting = await asked(gateway)
        gateway.promote("sql", 2)
        assert facts(await finished(await waiting)) == ("live", "pinned", "sql", 2)

    cold(home, stock, scenario)


def test_a_client_that_goes_away_ends_its_wait_and_not_the_load(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        waiting = await asked(gateway)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        gateway.engine.script.release("sql@1")
        name = gateway.engine_name("sql", 1)
        await gateway.until(lambda: gateway.engine.is_resident(name), "the load's end")

    cold(home, stock, scenario)


def test_a_version_that_was_never_in_force_on_this_gateway_is_waited_for_too(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        registry = Registry.open(home.registry_url)
        registry.change_route("sql", policy={"cold_wait_ms": LONG_MS})
        registry.close()
        engine = ScriptedEngine(stock.base, room=0)
        async with running(home, stock.base, live=[("sql", 1)], engine=engine) as gateway:
            assert gateway.in_force("sql") is None
            answer = await finished(await gateway.dispatcher.answer(client_request("sql"), "r-1"))
            assert facts(answer) == ("live", "pinned", "sql", 1)

    asyncio.run(scenario())


def test_another_routes_request_does_not_wait(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        await gateway.promoted("regex", 1)
        waiting = await asked(gateway)
        assert facts(await finished(await gateway.dispatcher.answer(client_request("regex"), "r-2")))[0] == "live"
        assert not waiting.done()
        gateway.engine.script.release("sql@1")
        await finished(await waiting)

    cold(home, stock, scenario)


def test_a_classified_request_waits_as_a_named_one_does_and_keeps_its_confidence(home: Home, stock: Stock) -> None:
    async def scenario(gateway: Gateway) -> None:
        promote_classifier(gateway.registry, 1)
        await gateway.until(lambda: gateway.catalog.classifier is not None, "the classifier")
        request = client_request("auto", "select the name of users where age is over 30")
        waiting = asyncio.create_task(gateway.dispatcher.answer(request, "r-1"))
        await gateway.until(lambda: gateway.engine.script.loads.count("sql@1") == 2, "the load")
        gateway.engine.script.release("sql@1")
        answer = await finished(await waiting)
        assert facts(answer) == ("live", "classified", "sql", 1)
        assert answer.decision.confidence is not None

    cold(home, stock, scenario)
