"""Who follows the registry hears of a change at once, and misses none where it could not listen."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from adapters import notices
from adapters.notices import Polling, notices_of
from adapters.registry import Registry
from tests.postgres_server import PostgresServer, postgres_server


@pytest.fixture(params=["sqlite", "postgresql"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path / 'registry.db'}"
    else:
        server: PostgresServer = request.getfixturevalue("postgresql")
        url = server.new_database()
    opened = Registry.open(url, actor="tester")
    opened.create_route("sql")
    yield opened
    opened.close()


@pytest.fixture(autouse=True)
def without_polling(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wait that nothing ends outlasts the test."""
    monkeypatch.setattr(notices, "LONGEST_SECONDS", 1000.0)


def other(registry: Registry) -> Registry:
    return Registry.open(registry.engine.url.render_as_string(hide_password=False), actor="other")


def test_a_change_by_another_process_ends_the_wait(registry: Registry) -> None:
    with closing(notices_of(registry.engine)) as heard, closing(other(registry)) as writer:
        heard.wait()  # the first may return at once, as nobody listened before
        for act in (writer.disable, writer.enable, writer.disable):
            waiting = threading.Thread(target=heard.wait)
            waiting.start()
            act("sql")
            waiting.join()


def test_a_change_between_two_waits_ends_the_second(registry: Registry) -> None:
    with closing(notices_of(registry.engine)) as heard, closing(other(registry)) as writer:
        heard.wait()
        writer.disable("sql")
        heard.wait()


def test_a_wait_can_be_ended_from_another_thread(registry: Registry) -> None:
    with closing(notices_of(registry.engine)) as heard:
        heard.wait()
        waiting = threading.Thread(target=heard.wait)
        waiting.start()
        heard.wake()
        waiting.join()
        heard.wake()
        heard.wait()


def test_a_listener_that_lost_its_server_listens_again() -> None:
    with postgres_server() as server:
        registry = Registry.open(server.url(), actor="tester")
        with closing(notices_of(registry.engine)) as heard:
            heard.wait()
            server.stop()
            heard.wait()  # the loss itself ends the wait
            server.start()
            heard.wait()
            waiting = threading.Thread(target=heard.wait)
            waiting.start()
            registry.create_route("sql")
            waiting.join()
        registry.close()


def test_a_database_that_announces_nothing_is_polled() -> None:
    polling = Polling(0.001)
    polling.wait()
    polling.wake()
    polling.wait()
    polling.close()
