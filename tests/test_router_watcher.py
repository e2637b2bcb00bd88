"""The watcher on a database server that neither answers nor refuses."""

from __future__ import annotations

import os
import queue
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool

from adapters.registry import Registry
from adapters.types import GatewayRow
from adapters.view import View
from router.following import watcher
from router.following.watcher import Watcher
from tests.fleet import DEADLINE, until
from tests.postgres_server import PostgresServer


@contextmanager
def hung(url: str) -> Iterator[None]:
    """The server's processes behind all connections there are to `url` do nothing; those to come are answered."""
    with create_engine(url, poolclass=NullPool).connect() as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        pids = list(connection.exec_driver_sql(query).scalars())
    try:
        send(signal.SIGSTOP, pids)
        yield
    finally:
        send(signal.SIGCONT, pids)


def send(number: signal.Signals, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def test_connections_that_say_nothing_are_given_up_and_new_ones_followed(
    postgresql: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watcher, "CUT_SECONDS", 0.5)
    url, views = postgresql.new_database(), queue.Queue[View]()
    with closing(Registry.open(url, actor="gateway")) as registry:
        follower = Watcher(registry, views.put, lambda: GatewayRow("gw", time.time(), 0, {}), 0)
        follower.start()
        try:
            with closing(Registry.open(url, actor="tester")) as other:
                until(lambda: bool(other.gateways()), "the first heartbeat")
            with hung(url), closing(Registry.open(url, actor="tester")) as other:
                other.create_route("sql")
                assert views.get(timeout=DEADLINE).serial == 1
            until(lambda: follower.stale_seconds == 0, "that it is fresh again")
        finally:
            follower.stop()
