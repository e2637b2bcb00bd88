"""Many gateways on one registry: an operator's change reaches them all, and none needs the database to serve."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import pytest

from adapters.home import Home
from adapters.registry import Registry
from adapters.registry_copy import copy_registry
from tests.fleet import Load, gateways, get, prepare, until
from tests.gateway_process import GatewayProcess, branchline
from tests.postgres_server import USER, PostgresServer
from tests.tcp_proxy import Cut, TcpProxy, tcp_proxy


@dataclass(frozen=True)
class Fleet:
    """Gateways on one registry; the wire between the last one and its database can be cut."""

    home: Home
    registry_url: str
    gateways: list[GatewayProcess]
    wire: TcpProxy

    @property
    def urls(self) -> list[str]:
        return [one.url for one in self.gateways]

    def command(self, *words: str) -> str:
        return branchline(*words, home=self.home.folder, BRANCHLINE_REGISTRY=self.registry_url)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return prepare(tmp_path_factory.mktemp("fleet"))


@pytest.fixture(scope="module")
def fleet(home: Home, postgresql: PostgresServer) -> Iterator[Fleet]:
    """Four gateways on PostgreSQL."""
    url = postgresql.new_database()
    with closing(Registry.open(home.registry_url)) as source, closing(Registry.open(url)) as target:
        copy_registry(source, target)
    name = url.partition("@/")[2].partition("?")[0]
    with tcp_proxy(postgresql.socket) as wire:
        through = f"postgresql+psycopg://{USER}@127.0.0.1:{wire.port}/{name}"
        with gateways(home, [url, url, url, through]) as started:
            yield Fleet(home, url, started, wire)


@contextmanager
def following(fleet: Fleet) -> Iterator[Registry]:
    """The registry, the route enabled in the end and all gateways at its serial."""
    with closing(Registry.open(fleet.registry_url, actor="test")) as registry:
        yield registry
        if not registry.route("sql").enabled:
            registry.enable("sql")
        until(lambda: all(row.serial == registry.serial() for row in registry.gateways()), "the same serial everywhere")


def stale_seconds(gateway: GatewayProcess) -> float:
    return float(json.loads(get(gateway.url, "/ready"))["registry_stale_seconds"])


def stages(load: Load) -> dict[str, set[str | None]]:
    """What answers each gateway's clients from now on."""
    found = load.since(time.monotonic())
    return {url: {one.stage for one in found if one.gateway == url} for url in load.urls}


def switch_under_load(home: Home, registry_url: str, urls: list[str], clients: int) -> None:
    """Disable and enable the route while clients ask every gateway: what the command says holds from then on."""
    with Load(urls, clients) as load:
        for verb, stage in (("disable", "base"), ("enable", "live")):
            said = branchline("route", verb, "sql", home=home.folder, BRANCHLINE_REGISTRY=registry_url)
            assert f"in force on {len(urls)} of {len(urls)} gateways" in said
            assert stages(load) == {url: {stage} for url in urls}
    assert {one.status for one in load.answers} == {200}


def test_a_change_reaches_four_gateways_under_load_and_fails_no_request(fleet: Fleet) -> None:
    switch_under_load(fleet.home, fleet.registry_url, fleet.urls, 2)


def test_a_change_reaches_every_worker_process_on_sqlite_and_fails_no_request(home: Home) -> None:
    with gateways(home, [home.registry_url], "--workers", "2") as started:
        switch_under_load(home, home.registry_url, [one.url for one in started], 4)


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_gateway_cut_off_from_the_database_serves_on_visibly_stale_and_catches_up(fleet: Fleet, how: Cut) -> None:
    alone = fleet.gateways[-1]
    with following(fleet) as registry, Load(fleet.urls, clients=1) as load:
        fleet.wire.cut(how)
        until(lambda: stale_seconds(alone) > 0, "that it is stale")
        assert stale_seconds(fleet.gateways[0]) == 0
        registry.disable("sql")
        until(lambda: sum(row.serial == registry.serial() for row in registry.gateways()) == 3, "the other three")
        assert stages(load) == {url: {"live" if url == alone.url else "base"} for url in fleet.urls}
        fleet.wire.heal()
        until(lambda: stages(load) == {url: {"base"} for url in fleet.urls}, "that it has caught up")
        until(lambda: stale_seconds(alone) == 0, "that it is fresh again")
    assert {one.status for one in load.answers} == {200}


def test_a_database_that_is_gone_for_all_stops_no_gateway(fleet: Fleet, postgresql: PostgresServer) -> None:
    with following(fleet) as registry:
        with Load(fleet.urls, clients=1) as load:
            postgresql.stop()
            try:
                until(lambda: all(stale_seconds(one) > 0 for one in fleet.gateways), "that all are stale")
                assert stages(load) == {url: {"live"} for url in fleet.urls}
            finally:
                postgresql.start()
            registry.disable("sql")
            until(lambda: stages(load) == {url: {"base"} for url in fleet.urls}, "that all have caught up")
        assert {one.status for one in load.answers} == {200}


def test_the_operator_is_told_which_gateway_does_not_follow(fleet: Fleet) -> None:
    with following(fleet) as registry:
        lost = fleet.gateways[1]
        lost.signal(signal.SIGSTOP)
        try:
            said = fleet.command("route", "disable", "sql")
        finally:
            lost.signal(signal.SIGCONT)
        (laggard,) = [row.gateway_id for row in registry.gateways() if f"-{lost.process.pid}-" in row.gateway_id]
        assert "in force on 3 of 4 gateways" in said
        assert f"{laggard}: still at serial" in said


def test_a_gateway_that_stops_takes_its_heartbeat_with_it(fleet: Fleet) -> None:
    with following(fleet) as registry, gateways(fleet.home, [fleet.registry_url]) as more:
        until(lambda: len(registry.gateways()) == 5, "its heartbeat")
        more[0].stop()
        assert len(registry.gateways()) == 4
