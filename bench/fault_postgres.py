"""The same promises on PostgreSQL: stopped, locked, read-only, silent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path

import sqlalchemy

from tests.postgres_server import USER, PostgresServer, postgres_server
from tests.tcp_proxy import TcpProxy, tcp_proxy

from .fault_ground import Count, Ground, ground_in
from .fault_registry_cases import struck


@asynccontextmanager
async def postgresql(folder: Path, *flags: str) -> AsyncIterator[Ground]:
    """A gateway whose registry is a PostgreSQL of its own, over a wire that can be cut."""
    with postgres_server(durable=True) as server, tcp_proxy(server.socket) as wire:
        url = server.new_database()
        name = url.partition("@/")[2].partition("?")[0]
        through = f"postgresql+psycopg://{USER}@127.0.0.1:{wire.port}/{name}"
        async with ground_in(folder, *flags, registry_url=url, variables={"BRANCHLINE_REGISTRY": through}) as ground:
            ground.server, ground.wire = server, wire
            yield ground


async def postgres_stopped(ground: Ground) -> Count:
    """The server is stopped at once, and started again."""
    return await struck(ground, partial(_stopped, _server(ground)))


async def postgres_locked(ground: Ground) -> Count:
    """Somebody holds an exclusive lock on every table."""
    return await struck(ground, partial(_table_locks, ground.home.registry_url))


async def postgres_read_only(ground: Ground) -> Count:
    """The server takes no writes, as a standby in the place of a primary."""
    return await struck(ground, partial(_read_only, _server(ground)))


async def postgres_slow(ground: Ground) -> Count:
    """Nothing comes through and nothing is refused, until it does again."""
    return await struck(ground, partial(_silent, _wire(ground)))


def _server(ground: Ground) -> PostgresServer:
    if ground.server is None:
        raise RuntimeError("the registry is not on PostgreSQL")
    return ground.server


def _wire(ground: Ground) -> TcpProxy:
    if ground.wire is None:
        raise RuntimeError("the registry is not on PostgreSQL")
    return ground.wire


@contextmanager
def _stopped(server: PostgresServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


@contextmanager
def _table_locks(url: str) -> Iterator[None]:
    engine = sqlalchemy.create_engine(url)
    try:
        with engine.connect() as connection:
            tables = ", ".join(sqlalchemy.inspect(connection).get_table_names())
            connection.exec_driver_sql(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            yield
            connection.rollback()
    finally:
        engine.dispose()


@contextmanager
def _read_only(server: PostgresServer) -> Iterator[None]:
    engine = sqlalchemy.create_engine(server.url(), isolation_level="AUTOCOMMIT")

    def tell(word: str) -> None:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"ALTER SYSTEM SET default_transaction_read_only = {word}")
            connection.exec_driver_sql("SELECT pg_reload_conf()")

    tell("on")
    try:
        yield
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql("SET default_transaction_read_only = off")
            connection.exec_driver_sql("ALTER SYSTEM SET default_transaction_read_only = off")
            connection.exec_driver_sql("SELECT pg_reload_conf()")
        engine.dispose()


@contextmanager
def _silent(wire: TcpProxy) -> Iterator[None]:
    wire.cut("silent")
    try:
        yield
    finally:
        wire.heal()
