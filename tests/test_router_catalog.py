"""The catalog against a real registry and store: what is wanted comes into force, and nothing else does."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import adapters.database
import router.following.judging
import router.following.residency
import router.following.warming
import router.following.watcher
from adapters.classifiers import promote_classifier, rollback_classifier
from adapters.cli_route import route as route_command
from adapters.errors import Refused
from adapters.home import Home
from adapters.types import GatewayRow
from router.classify.classifier import Classifier
from router.classify.loader import load_classifier
from router.errors import AdapterUnavailable
from tests.gateway_parts import (
    ROUTES,
    Gateway,
    ScriptedEngine,
    Stock,
    classifier_versions,
    client_request,
    make_stock,
    running,
)

Scenario = Callable[[Gateway], Awaitable[None]]
Homes = Callable[[], Home]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def homes(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Homes:
    """A fresh copy of the stocked home at each call."""
    return lambda: stock.copy(tmp_path_factory.mktemp("gateway") / "home")


@pytest.fixture
def home(homes: Homes) -> Home:
    return homes()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """What happens after seconds in production happens at once here; tests wait for it, never for a time."""
    monkeypatch.setattr(router.following.judging, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(router.following.warming, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(router.following.residency, "UNLOAD_DELAY_SECONDS", 0.02)
    monkeypatch.setattr(router.following.watcher, "RETRY_SECONDS", 0.02)


def row(gateway: Gateway) -> GatewayRow:
    (found,) = gateway.registry.gateways()
    return found


async def told(gateway: Gateway, route: str, problem: str) -> None:
    """Wait until the fleet is told of `problem`."""
    await gateway.until(
        lambda: any(
            problem in ((one.routes[route].problem or "") if route in one.routes else "")
            for one in gateway.registry.gateways()
        ),
        f"{problem!r} in the heartbeat",
    )


# -- taking traffic away --------------------------------------------------------------------------------------------


def test_disable_does_not_wait_for_a_load_that_hangs_on_another_route(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("regex", 1)]) as gateway:
            gateway.engine.script.hold("regex@2")
            await gateway.applied(gateway.promote("regex", 2))
            await gateway.until(lambda: "regex@2" in gateway.engine.script.loads, "the load that hangs")
            await gateway.applied(gateway.registry.disable("sql").event.serial)
            assert gateway.decide("sql").reason == "route_disabled"
            assert gateway.in_force("regex") == 1

    asyncio.run(scenario())


def test_enable_after_disable_is_in_force_without_a_load(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            await gateway.applied(gateway.registry.disable("sql").event.serial)
            before = list(gateway.engine.script.loads)
            await gateway.applied(gateway.registry.enable("sql").event.serial)
            assert gateway.in_force("sql") == 1
            assert gateway.engine.script.loads == before == ["sql@1"]

    asyncio.run(scenario())


def test_a_disabled_route_keeps_its_versions_warm_also_after_a_restart(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            await gateway.applied(gateway.registry.disable("sql").event.serial)
        async with running(home, stock.base) as gateway:
            assert gateway.in_force("sql") is None
            assert gateway.engine.is_resident(gateway.engine_name("sql", 1))

    asyncio.run(scenario())


def test_retiring_the_live_version_gives_its_traffic_to_the_one_before_at_once(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2)]) as gateway:
            await gateway.applied(gateway.registry.retire("sql", 2).event.serial)
            assert gateway.in_force("sql") == 1

    asyncio.run(scenario())


def test_retiring_the_live_version_over_a_cold_one_gives_the_traffic_to_the_base_meanwhile(
    home: Home, stock: Stock
) -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(stock.base)
        engine.script.hold("sql@1")
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2)], engine=engine, settle=False) as gateway:
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force")
            await gateway.applied(gateway.registry.retire("sql", 2).event.serial)
            assert gateway.decide("sql").reason == "adapter_unavailable"
            engine.script.release("sql@1")
            await gateway.until(lambda: gateway.in_force("sql") == 1, "1 in force")

    asyncio.run(scenario())


# -- bringing a version in ------------------------------------------------------------------------------------------


def test_the_old_version_answers_until_the_promoted_one_is_resident(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            gateway.engine.script.hold("sql@2")
            serial = gateway.promote("sql", 2)
            await gateway.applied(serial)
            assert gateway.decide("sql").engine_name == gateway.engine_name("sql", 1)
            assert gateway.catalog.warming == ["sql"]
            assert gateway.catalog.snapshot.routes["sql"].serial < serial
            gateway.engine.script.release("sql@2")
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force")
            assert gateway.catalog.snapshot.routes["sql"].serial == serial
            assert gateway.catalog.warming == []

    asyncio.run(scenario())


def test_a_newer_promotion_is_not_held_up_by_an_older_load_that_hangs(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            gateway.engine.script.hold("sql@2")
            await gateway.applied(gateway.promote("sql", 2))
            await gateway.until(lambda: "sql@2" in gateway.engine.script.loads, "the load that hangs")
            await gateway.promoted("sql", 3)

    asyncio.run(scenario())


def test_a_version_that_is_loaded_too_late_to_be_wanted_is_unloaded(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            name = gateway.engine_name("sql", 2)
            gateway.engine.script.hold("sql@2")
            await gateway.applied(gateway.promote("sql", 2))
            await gateway.until(lambda: "sql@2" in gateway.engine.script.loads, "the load that hangs")
            await gateway.applied(gateway.registry.rollback("sql").event.serial)
            gateway.engine.script.release("sql@2")
            await gateway.until(lambda: name in gateway.engine.script.unloads, "the unload")
            assert gateway.in_force("sql") == 1

    asyncio.run(scenario())


def test_a_failed_load_keeps_the_old_version_and_says_so_everywhere_until_it_succeeds(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            gateway.engine.script.faults["sql@2"] = "its rank is more than this engine takes"
            gateway.promote("sql", 2)
            await told(gateway, "sql", "its rank is more")
            assert gateway.in_force("sql") == 1
            assert gateway.catalog.problems == {"sql": "its rank is more than this engine takes"}
            assert gateway.catalog.warming == []
            shown = show(home, "sql")["gateways"]["gateway-under-test"]
            assert (shown["in_force"], shown["problem"]) == (
                gateway.engine_name("sql", 1),
                "its rank is more than this engine takes",
            )
            del gateway.engine.script.faults["sql@2"]
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force by a later try")
            await gateway.until(lambda: row(gateway).routes["sql"].problem is None, "the problem gone")
            assert gateway.catalog.problems == {}

    asyncio.run(scenario())


def test_an_unforeseen_failure_of_a_load_is_a_problem_without_its_details(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            gateway.engine.script.crashes.add("sql@2")
            gateway.promote("sql", 2)
            await told(gateway, "sql", "sql@2 could not be loaded: internal error")
            assert "secret" not in str(row(gateway))
            gateway.engine.script.crashes.clear()
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force by a later try")

    asyncio.run(scenario())


def test_a_live_version_that_cannot_be_loaded_does_not_keep_the_one_before_it_cold(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(stock.base)
        engine.script.faults["sql@2"] = "broken"
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2)], engine=engine) as gateway:
            assert gateway.in_force("sql") is None
            await gateway.applied(gateway.registry.rollback("sql").event.serial)
            assert gateway.in_force("sql") == 1

    asyncio.run(scenario())


def test_the_old_version_stays_resident_through_any_number_of_promotions_that_fail(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            gateway.engine.script.faults |= {"sql@2": "broken", "sql@3": "broken"}
            await gateway.applied(gateway.promote("sql", 2))
            await gateway.applied(gateway.promote("sql", 3))
            for number in (1, 2, 3):
                await gateway.promoted("regex", number)
            name = gateway.engine_name("regex", 1)
            await gateway.until(lambda: name in gateway.engine.script.unloads, "an unload that was due later")
            assert gateway.in_force("sql") == 1
            assert gateway.engine.is_resident(gateway.engine_name("sql", 1))
            gateway.engine.script.faults.clear()
            name = gateway.engine_name("sql", 1)
            await gateway.until(lambda: name in gateway.engine.script.unloads, "its own unload, once 3 answers")

    asyncio.run(scenario())


def test_a_stored_file_that_was_altered_is_never_in_force(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            version = gateway.registry.version("sql", 2)
            weights = gateway.store.folder("sql", version.digest) / "adapter_model.safetensors"
            intact = weights.read_bytes()
            weights.chmod(0o600)
            weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
            gateway.promote("sql", 2)
            await told(gateway, "sql", "adapter_model.safetensors was altered")
            assert gateway.in_force("sql") == 1
            assert "sql@2" not in gateway.engine.script.loads
            weights.write_bytes(intact)
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force once mended")

    asyncio.run(scenario())


def test_a_stored_folder_that_is_gone_is_a_problem_and_the_old_version_stays(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            folder = gateway.store.folder("sql", gateway.registry.version("sql", 2).digest)
            folder.rename(folder.with_name("elsewhere"))
            gateway.promote("sql", 2)
            await told(gateway, "sql", "no stored version")
            assert gateway.in_force("sql") == 1

    asyncio.run(scenario())


def test_a_version_of_another_base_is_refused_with_both_fingerprints(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(stock.base, fingerprint="e" * 64)
        async with running(home, stock.base, live=[("sql", 1)], engine=engine) as gateway:
            problem = gateway.catalog.problems["sql"]
            assert problem.startswith("sql@1 belongs to base tiny")
            assert stock.base.fingerprint[:16] in problem
            assert "e" * 16 in problem
            assert gateway.decide("sql").reason == "adapter_unavailable"
            assert engine.script.loads == []

    asyncio.run(scenario())


def test_waiting_for_what_is_loaded_can_be_given_up(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(stock.base)
        engine.script.hold("sql@1")
        async with running(home, stock.base, live=[("sql", 1)], engine=engine, settle=False) as gateway:
            await gateway.catalog.settled(0.01)
            assert gateway.catalog.warming == ["sql"]

    asyncio.run(scenario())


# -- rollback -------------------------------------------------------------------------------------------------------


def test_a_rollback_drops_the_bad_version_at_once_even_where_its_target_is_cold(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(stock.base)
        engine.script.hold("sql@1")
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2)], engine=engine, settle=False) as gateway:
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force")
            await gateway.applied(gateway.registry.rollback("sql").event.serial)
            found = gateway.decide("sql")
            assert (found.engine_name, found.reason) == ("tiny", "adapter_unavailable")
            engine.script.release("sql@1")
            await gateway.until(lambda: gateway.in_force("sql") == 1, "1 in force")

    asyncio.run(scenario())


def test_a_rollback_over_several_versions_drops_each_of_them_at_once(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2)]) as gateway:
            gateway.engine.script.hold("sql@3", "sql@1")
            await gateway.applied(gateway.promote("sql", 3))
            assert gateway.in_force("sql") == 2  # 3 is being warmed
            gateway.engine.lose(gateway.engine_name("sql", 1))
            await gateway.applied(gateway.registry.rollback("sql", to=1).event.serial)
            assert gateway.in_force("sql") is None
            gateway.engine.script.release("sql@1")
            await gateway.until(lambda: gateway.in_force("sql") == 1, "1 in force")

    asyncio.run(scenario())


def test_rollbacks_go_down_the_stack_also_where_a_number_stands_in_it_twice(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2), ("sql", 1)]) as gateway:
            assert gateway.in_force("sql") == 1
            await gateway.applied(gateway.registry.rollback("sql").event.serial)
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force")
            await gateway.applied(gateway.registry.rollback("sql").event.serial)
            await gateway.until(lambda: gateway.in_force("sql") == 1, "1 in force")
            with pytest.raises(Refused):
                gateway.registry.rollback("sql")

    asyncio.run(scenario())


def test_a_version_that_a_retirement_brought_back_answers_until_the_next_promotion_is_warm(
    home: Home, stock: Stock
) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2), ("sql", 1)]) as gateway:
            await gateway.applied(gateway.registry.rollback("sql").event.serial)
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force")
            await gateway.applied(gateway.registry.retire("sql", 2).event.serial)
            await gateway.until(lambda: gateway.in_force("sql") == 1, "1 in force")
            gateway.engine.script.hold("sql@3")
            await gateway.applied(gateway.promote("sql", 3))
            assert gateway.in_force("sql") == 1

    asyncio.run(scenario())


def test_a_version_that_was_rolled_back_to_answers_until_the_next_promotion_is_warm(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2), ("sql", 1)]) as gateway:
            await gateway.applied(gateway.registry.rollback("sql").event.serial)
            await gateway.until(lambda: gateway.in_force("sql") == 2, "2 in force")
            await gateway.applied(gateway.registry.rollback("sql").event.serial)
            await gateway.until(lambda: gateway.in_force("sql") == 1, "1 in force")
            gateway.engine.script.hold("sql@3")
            await gateway.applied(gateway.promote("sql", 3))
            assert gateway.in_force("sql") == 1

    asyncio.run(scenario())


# -- residency ------------------------------------------------------------------------------------------------------


def test_a_version_is_unloaded_once_it_is_neither_live_nor_the_one_before(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            names = {number: gateway.engine_name("sql", number) for number in (1, 2, 3)}
            await gateway.promoted("sql", 2)
            await gateway.promoted("sql", 3)
            await gateway.until(lambda: not gateway.engine.is_resident(names[1]), "1 unloaded")
            assert gateway.engine.script.unloads == [names[1]]
            assert gateway.engine.is_resident(names[2])

    asyncio.run(scenario())


def test_unloading_waits_for_requests_that_began_before(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.following.residency, "UNLOAD_DELAY_SECONDS", 3600.0)

    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2)]) as gateway:
            earlier = gateway.catalog.snapshot
            await gateway.promoted("sql", 3)
            await gateway.catalog.settled()
            assert earlier.routes["sql"].in_force == 2
            assert gateway.engine.is_resident(gateway.engine_name("sql", 1))
            assert gateway.engine.script.unloads == []

    asyncio.run(scenario())


def test_a_load_goes_on_when_the_request_that_asked_for_it_gives_up(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2), ("sql", 3)]) as gateway:
            gateway.engine.script.hold("sql@1")
            with pytest.raises(AdapterUnavailable, match="still loading"):
                await gateway.catalog.ensure_resident("sql", 1, timeout_seconds=0.01)
            gateway.engine.script.release("sql@1")
            await gateway.catalog.ensure_resident("sql", 1, timeout_seconds=30)
            assert gateway.engine.script.loads.count("sql@1") == 1

    asyncio.run(scenario())


def test_requests_for_one_cold_version_share_one_load(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1), ("sql", 2), ("sql", 3)]) as gateway:
            asked = [gateway.catalog.ensure_resident("sql", 1, timeout_seconds=30) for _ in range(8)]
            await asyncio.gather(*asked)
            assert gateway.engine.script.loads.count("sql@1") == 1

    asyncio.run(scenario())


def test_of_cold_versions_asked_for_by_number_only_a_few_come_in_at_a_time_also_where_clients_leave(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.following.residency, "PINS_AT_ONCE", 1)

    async def scenario() -> None:
        live = [("sql", number) for number in (1, 2, 3, 4)]
        async with running(home, stock.base, live=live) as gateway:
            await gateway.until(lambda: gateway.in_force("sql") == 4, "4 in force")
            script, catalog = gateway.engine.script, gateway.catalog
            for number in (1, 2):
                gateway.engine.lose(gateway.engine_name("sql", number))
            script.loads.clear()
            script.hold("sql@1", "sql@2")
            with pytest.raises(AdapterUnavailable, match="still loading"):
                await catalog.ensure_resident("sql", 1, timeout_seconds=0.01)
            with pytest.raises(AdapterUnavailable, match="still loading"):
                await catalog.ensure_resident("sql", 2, timeout_seconds=0.01)
            second = asyncio.create_task(catalog.ensure_resident("sql", 2, timeout_seconds=30))
            await gateway.promoted("regex", 1)  # does not wait for them
            assert script.loads == ["sql@1", "regex@1"]
            script.release("sql@1")
            script.release("sql@2")
            await second
            assert script.loads == ["sql@1", "regex@1", "sql@2"]

    asyncio.run(scenario())


def test_of_versions_asked_for_by_number_only_the_latest_few_stay(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(router.following.residency, "MAX_PINNED_EXTRAS", 1)

    async def scenario() -> None:
        live = [("sql", 1), ("sql", 2), ("sql", 3), ("sql", 4)]
        async with running(home, stock.base, live=live) as gateway:
            for number in (3, 1, 2):
                await gateway.catalog.ensure_resident("sql", number, timeout_seconds=30)
            await gateway.until(lambda: gateway.engine_name("sql", 1) in gateway.engine.script.unloads, "1 unloaded")
            resident = [n for n in (2, 3, 4) if gateway.engine.is_resident(gateway.engine_name("sql", n))]
            assert resident == [2, 3, 4]  # asked for last; the one before the live one; the live one

    asyncio.run(scenario())


def test_a_stream_that_began_before_a_promotion_ends_with_the_version_it_began_with(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            answer = await gateway.dispatcher.answer(client_request("sql"), "r-1")
            first = await anext(answer.reply.body)
            await gateway.promoted("sql", 2)
            await gateway.promoted("sql", 3)
            name = gateway.engine_name("sql", 1)
            await gateway.until(lambda: not gateway.engine.is_resident(name), "1 unloaded")
            frames = [first, *[piece async for piece in answer.reply.body]]
            models = {json.loads(frame[6:])["model"] for frame in frames[:-1]}
            assert models == {name}
            assert frames[-1] == b"data: [DONE]\n\n"

    asyncio.run(scenario())


# -- the classifier -------------------------------------------------------------------------------------------------


def test_a_promoted_classifier_is_swapped_in_and_a_rollback_swaps_it_back(home: Home, stock: Stock) -> None:
    first, second = classifier_versions(home)

    async def scenario() -> None:
        async with running(home, stock.base) as gateway:
            for change in (1, 2):
                promote_classifier(gateway.registry, change)
                await in_use(gateway, (first, second)[change - 1].digest)
            rollback_classifier(gateway.registry)
            await in_use(gateway, first.digest)
            await gateway.until(lambda: row(gateway).classifier_digest == first.digest, "the digest in the heartbeat")

    asyncio.run(scenario())


def test_a_corrupted_classifier_keeps_the_old_one_and_is_tried_again(home: Home, stock: Stock) -> None:
    first, second = classifier_versions(home)

    async def scenario() -> None:
        async with running(home, stock.base) as gateway:
            promote_classifier(gateway.registry, 1)
            await in_use(gateway, first.digest)
            weights = gateway.store.classifier_folder(second.digest) / "weights.npy"
            intact = weights.read_bytes()
            weights.chmod(0o600)
            weights.write_bytes(intact[:-4] + b"\0\0\0\1")
            promote_classifier(gateway.registry, 2)
            await gateway.until(lambda: gateway.catalog.classifier_problem is not None, "the problem")
            assert "weights.npy" in str(gateway.catalog.classifier_problem)
            assert gateway.catalog.snapshot.classifier_digest == first.digest
            weights.write_bytes(intact)
            await in_use(gateway, second.digest)
            assert gateway.catalog.classifier_problem is None

    asyncio.run(scenario())


def test_a_classifier_that_is_read_too_late_does_not_replace_the_one_wanted_since(home: Home, stock: Stock) -> None:
    first, second = classifier_versions(home)
    slow, begun, ended = threading.Event(), threading.Event(), threading.Event()

    def read(folder: Path, digest: str) -> Classifier:
        if digest == second.digest:
            begun.set()
            slow.wait()
            ended.set()
        return load_classifier(folder, digest=digest)

    async def scenario() -> None:
        async with running(home, stock.base, read_classifier=read) as gateway:
            promote_classifier(gateway.registry, 1)
            await in_use(gateway, first.digest)
            promote_classifier(gateway.registry, 2)
            await gateway.until(begun.is_set, "the slow read")
            await gateway.applied(rollback_classifier(gateway.registry).serial)
            slow.set()
            await gateway.until(ended.is_set, "the end of the slow read")
            await gateway.catalog.settled()
            assert gateway.catalog.snapshot.classifier_digest == first.digest

    asyncio.run(scenario())


async def in_use(gateway: Gateway, digest: str) -> None:
    await gateway.until(lambda: gateway.catalog.snapshot.classifier_digest == digest, f"classifier {digest[:8]}")


# -- the registry while serving --------------------------------------------------------------------------------------


def test_a_registry_that_cannot_be_read_leaves_everything_in_force_and_is_caught_up_with(
    home: Home, stock: Stock
) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            with sqlite3.connect(home.folder / "registry.db") as database:
                database.execute("ALTER TABLE registry RENAME TO hidden")
                await gateway.until(lambda: gateway.catalog.stale_seconds > 0, "stale")
                earlier = gateway.catalog.stale_seconds
                await gateway.until(lambda: gateway.catalog.stale_seconds > earlier, "staler")
                assert gateway.decide("sql").version == 1
                database.execute("ALTER TABLE hidden RENAME TO registry")
            database.close()
            await gateway.until(lambda: gateway.catalog.stale_seconds == 0, "fresh again")
            await gateway.promoted("sql", 2)

    asyncio.run(scenario())


def test_a_registry_that_somebody_keeps_locked_leaves_everything_in_force_and_is_caught_up_with(
    home: Home, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters.database, "BUSY_TIMEOUT_MS", 20)

    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            database = sqlite3.connect(home.folder / "registry.db", isolation_level=None)
            database.execute("BEGIN EXCLUSIVE")
            await gateway.until(lambda: gateway.catalog.stale_seconds > 0, "stale, as no heartbeat can be written")
            assert gateway.decide("sql").version == 1
            database.execute("ROLLBACK")
            database.close()
            await gateway.until(lambda: gateway.catalog.stale_seconds == 0, "fresh again")
            await gateway.promoted("sql", 2)

    asyncio.run(scenario())


def test_a_registry_that_is_moved_away_and_back_leaves_everything_in_force(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            away = home.folder.with_name("away")
            home.folder.rename(away)
            assert gateway.decide("sql").version == 1
            await gateway.until(lambda: gateway.catalog.stale_seconds > 0, "stale")
            away.rename(home.folder)
            await gateway.until(lambda: gateway.catalog.stale_seconds == 0, "fresh again")
            await gateway.promoted("sql", 2)

    asyncio.run(scenario())


def test_an_older_registry_in_the_place_of_the_one_that_was_followed_leaves_everything_in_force_and_stale(
    home: Home, stock: Stock, tmp_path: Path
) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            file = home.folder / "registry.db"
            with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(tmp_path / "backup")) as copy:
                source.backup(copy)
            await gateway.promoted("sql", 2)
            for beside in ("-wal", "-shm"):
                file.with_name(file.name + beside).unlink(missing_ok=True)
            (tmp_path / "backup").replace(file)
            await gateway.until(lambda: gateway.catalog.stale_seconds > 0, "stale")
            assert gateway.decide("sql").version == 2

    asyncio.run(scenario())


def test_a_row_nobody_can_read_does_not_end_the_watch(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            database = sqlite3.connect(home.folder / "registry.db", isolation_level=None)
            (intact,) = database.execute("SELECT state FROM routes WHERE name = 'sql'").fetchone()
            database.execute("UPDATE routes SET state = '[]' WHERE name = 'sql'")
            database.execute(
                "INSERT INTO events SELECT serial + 1, time, 'disabled', 'sql', NULL, actor, why, payload "
                "FROM events ORDER BY serial DESC LIMIT 1"
            )
            database.execute("UPDATE registry SET serial = serial + 1")
            await gateway.until(lambda: gateway.catalog.stale_seconds > 0, "stale")
            assert gateway.decide("sql").version == 1
            database.execute("UPDATE routes SET state = ? WHERE name = 'sql'", [intact])
            database.close()
            await gateway.until(lambda: gateway.catalog.stale_seconds == 0, "fresh again")
            await gateway.promoted("sql", 2)

    asyncio.run(scenario())


def test_a_policy_key_of_a_newer_branchline_does_not_keep_a_disable_from_taking_effect(
    home: Home, stock: Stock
) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            database = sqlite3.connect(home.folder / "registry.db", isolation_level=None)
            database.execute("UPDATE routes SET state = json_set(state, '$.policy.of_tomorrow', 1) WHERE name = 'sql'")
            database.close()
            gateway.registry.disable("sql")
            await gateway.until(lambda: gateway.decide("sql").reason == "route_disabled", "the disable")

    asyncio.run(scenario())


def test_the_heartbeat_goes_away_with_the_gateway(home: Home, stock: Stock) -> None:
    async def scenario() -> None:
        async with running(home, stock.base, live=[("sql", 1)]) as gateway:
            await gateway.until(lambda: len(gateway.registry.gateways()) == 1, "the heartbeat")
            in_force = row(gateway).routes["sql"].engine_name
            assert in_force in {None, gateway.engine_name("sql", 1)}
            await gateway.catalog.stop()
            assert gateway.registry.gateways() == []

    asyncio.run(scenario())


# -- any sequence of operations --------------------------------------------------------------------------------------

NUMBERS = st.integers(1, 4)
STEPS = st.tuples(
    st.sampled_from(["promote", "promote", "rollback", "rollback_to", "disable", "enable", "retire"]),
    st.sampled_from(ROUTES),
    NUMBERS,
)
BROKEN = st.sets(st.tuples(st.sampled_from(ROUTES), NUMBERS), max_size=2)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEPS, min_size=3, max_size=14), broken=BROKEN, waits=st.lists(st.booleans(), min_size=14))
def test_after_any_changes_what_is_in_force_is_what_is_wanted_wherever_it_can_be_loaded(
    homes: Homes, stock: Stock, steps: list[tuple[str, str, int]], broken: set[tuple[str, int]], waits: list[bool]
) -> None:
    async def scenario() -> None:
        engine = ScriptedEngine(stock.base)
        engine.script.faults = {f"{route}@{number}": "broken" for route, number in broken}
        async with running(homes(), stock.base, engine=engine) as gateway:
            serial = 0
            for (kind, route, number), wait in zip(steps, waits, strict=False):
                serial = operate(gateway, kind, route, number) or serial
                if wait:
                    await gateway.applied(serial)
                    require_sound(gateway)
            await gateway.applied(serial)
            await gateway.catalog.settled()
            require_sound(gateway)
            for name in ROUTES:
                require_settled(gateway, name, broken)

    asyncio.run(scenario())


def operate(gateway: Gateway, kind: str, route: str, number: int) -> int | None:
    """Do one operation; `None` where the registry refuses it."""
    registry = gateway.registry
    operations = {
        "promote": lambda: registry.promote(route, number, forced="a walk"),
        "rollback": lambda: registry.rollback(route),
        "rollback_to": lambda: registry.rollback(route, to=number),
        "disable": lambda: registry.disable(route),
        "enable": lambda: registry.enable(route),
        "retire": lambda: registry.retire(route, number),
    }
    try:
        return operations[kind]().event.serial
    except Refused:
        return None


def require_sound(gateway: Gateway) -> None:
    """Whatever is in force is resident, of an enabled route and not retired."""
    for route in gateway.catalog.snapshot.routes.values():
        if route.in_force is not None:
            version = route.versions[route.in_force]
            assert route.enabled
            assert not version.retired
            assert gateway.engine.is_resident(version.engine_name)


def require_settled(gateway: Gateway, name: str, broken: set[tuple[str, int]]) -> None:
    state = gateway.registry.route(name)
    wanted = state.live if state.enabled else None
    route = gateway.catalog.snapshot.routes[name]
    assert route.wanted == wanted
    if (name, wanted) in broken:
        assert route.in_force != wanted
        assert gateway.catalog.problems[name] == "broken"
    else:
        assert route.in_force == wanted
        assert name not in gateway.catalog.problems


def show(home: Home, route: str) -> dict[str, dict[str, dict[str, str]]]:
    """`branchline route show ROUTE --json`."""
    done = CliRunner().invoke(route_command, ["show", route, "--json", "--home", str(home.folder)])
    document: dict[str, dict[str, dict[str, str]]] = json.loads(done.output)
    return document
