"""Who is alive: told by the database's clock, where machines' clocks differ; and what is said of the others."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

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


def test_a_gateway_that_was_not_heard_of_is_named_for_an_hour_but_not_waited_for(tmp_path: Path) -> None:
    with closing(Registry.open(f"sqlite:///{tmp_path}/registry.db", actor="test")) as registry:
        registry.create_route("sql")
        serial = registry.disable("sql").event.serial
        for name, age in (("fresh", 0), ("cut off", 60), ("long gone", 2 * 3600)):
            at = serial if name == "fresh" else serial - 1
            registry.beat(GatewayRow(name, time.time() - age, at, {"sql": InForce(at, None)}))
        found = wait_in_force(registry, serial, route="sql", started=time.monotonic())
    assert (found.in_force, found.problems) == (("fresh",), {})
    assert found.silent == {"cut off": pytest.approx(60, abs=5)}
    assert str(found).startswith("in force on 1 of 1 gateways")
    assert "cut off: silent for 6" in str(found)
