"""Machines whose clocks differ: who is alive is told by the database's clock."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from adapters.convergence import wait_in_force
from adapters.registry import Registry
from adapters.types import GatewayRow, InForce
from tests.postgres_server import PostgresServer


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_gateway_or_an_operator_whose_clock_is_off_is_told_the_truth(
    postgresql: PostgresServer, hours: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Registry.open(postgresql.new_database(), actor="test")) as registry:
        registry.create_route("sql")
        serial = registry.disable("sql").event.serial
        clock = time.time
        registry.beat(GatewayRow("off", clock() + 3600 * hours, serial, {"sql": InForce(serial, None)}))
        assert wait_in_force(registry, serial, route="sql", started=time.monotonic()).in_force == ("off",)
        monkeypatch.setattr(time, "time", lambda: clock() + 3600 * hours)
        assert wait_in_force(registry, serial, route="sql", started=time.monotonic()).in_force == ("off",)
