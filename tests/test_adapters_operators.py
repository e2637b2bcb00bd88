"""Operators racing on one registry, each killed with SIGKILL in the middle of its work: nothing is ever half done."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.errors import Conflict
from adapters.fold import fold_routes
from adapters.manifests import digest_of_files
from adapters.registry import Registry
from adapters.registry_replay import replay
from adapters.types import Manifest
from tests.operator_process import ROUTES
from tests.postgres_server import PostgresServer

OPERATORS = 4
ACKNOWLEDGED = 25  # changes of each operator before it is killed


@pytest.fixture(params=["postgresql", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A registry of two routes with three versions each."""
    if request.param == "sqlite":
        made = f"sqlite:///{tmp_path / 'registry.db'}"
    else:
        server: PostgresServer = request.getfixturevalue("postgresql")
        made = server.new_database()
    registry = Registry.open(made, actor="test")
    for route in ROUTES:
        registry.create_route(route)
        for seed in range(3):
            files = {"adapter_config.json": f"{seed:064x}", "adapter_model.safetensors": "0" * 64}
            registry.publish(
                route, Manifest(digest_of_files(files), files, 10, "pocket", "b" * 64, 4, 8.0, ("q_proj",))
            )
    registry.close()
    return made


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    opened = Registry.open(url, actor="reader")
    yield opened
    opened.close()


class Reader(threading.Thread):
    """Reads the registry again and again as one moment; `problems` are the places where it contradicts its events."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._stopping = threading.Event()
        self.problems: list[str] = []
        self.readings = 0

    def run(self) -> None:
        registry = Registry.open(self._url, actor="reader")
        while not self._stopping.is_set():
            with registry.reading() as connection:
                self.problems += replay(connection).problems
            self.readings += 1
        registry.close()

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def test_of_operators_that_race_and_are_killed_nothing_is_half_applied(url: str, registry: Registry) -> None:
    first = registry.serial()
    reader = Reader(url)
    reader.start()
    command = [sys.executable, "-m", "tests.operator_process", url]
    operators = [
        subprocess.Popen([*command, f"operator-{seed}", str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(OPERATORS)
    ]
    acknowledged: dict[int, tuple[str, str, str, int | None]] = {}
    for number, operator in enumerate(operators):
        assert operator.stdout is not None
        lines = [operator.stdout.readline() for _ in range(ACKNOWLEDGED)]
        operator.kill()
        lines += operator.stdout.read().splitlines()
        operator.stdout.close()
        operator.wait()
        for line in lines:
            serial, act, route, expected = json.loads(line)
            assert serial not in acknowledged, "two operators were given one serial"
            acknowledged[serial] = (f"operator-{number}", act, route, expected)
    reader.stop()
    assert reader.problems == []
    assert reader.readings > 0
    events = registry.events()
    assert [event.serial for event in events] == list(range(1, registry.serial() + 1))
    told = {event.serial: (event.actor, event.kind, str(event.route)) for event in events[first:]}
    assert {serial: change[:3] for serial, change in acknowledged.items()}.items() <= told.items()
    assert len(told) - len(acknowledged) <= OPERATORS, "one change of each may have come before its acknowledgement"
    for serial, (_, _, route, expected) in acknowledged.items():
        if expected is not None:
            assert fold_routes(events[: serial - 1])[registry.route(route).name].revision == expected
    with registry.reading() as connection:
        assert replay(connection).problems == ()


def test_of_two_operators_who_read_the_same_revision_one_is_told_of_the_conflict(url: str) -> None:
    both = [Registry.open(url, actor=name) for name in ("ann", "bob")]
    revision = both[0].route("sql").revision
    barrier, results = threading.Barrier(2), list[object]()

    def attempt(act: Callable[[], object]) -> None:
        barrier.wait()
        try:
            results.append(act())
        except Conflict as conflict:
            results.append(conflict)

    ann, bob = both
    acts = (
        lambda: ann.disable("sql", expected_revision=revision),
        lambda: bob.promote("sql", 1, forced="race", expected_revision=revision),
    )
    threads = [threading.Thread(target=attempt, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(result, Conflict) for result in results) == 1
    state = both[0].route("sql")
    assert (state.revision, (not state.enabled) + (state.live is not None)) == (revision + 1, 1)
    for mine in both:
        mine.close()
