"""Opening the registry's database: SQLite by default, PostgreSQL by URL, made or upgraded where it has to be.

A new registry gets all tables at once. One of an older revision is brought up to date under a lock, by the steps in
`migrations`; one of a revision that this code does not know is refused.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sqlite3
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, create_engine, event, func, insert, make_url, select
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from . import schema
from .errors import RegistryUnavailable
from .files import make_folder
from .schema import REVISION, SCHEMA_NUMBER
from .sqlite_file import WatchedFile

BUSY_TIMEOUT_MS = 10_000
CONNECT_SECONDS = 5
LOST_AFTER_MS = 5_000  # of a server that acknowledges nothing; the kernel alone would wait a quarter of an hour
_LOCK = 0x6272616E6368  # of whoever makes or upgrades the tables on PostgreSQL
_NEWER = "use the Branchline version that wrote it, or a newer one"
log = logging.getLogger("branchline.registry")


def connect(url: str, *, create: bool = True, busy_timeout_ms: int | None = None) -> Engine:
    """Open the registry at `url`, and make it where it is new; raises `RegistryUnavailable` with the reason.

    Without `create` one that is not there is not made either. `busy_timeout_ms` bounds what is waited for other
    writers; on PostgreSQL also a whole statement and, in whole seconds, the connection. Without it SQLite waits ten
    seconds, PostgreSQL as long as its administrator says. Where the URL says how long to wait, that holds.
    """
    with _openable():
        engine = _make_engine(url, create=create, busy_timeout_ms=busy_timeout_ms)
        _prepare(engine, create=create)
    return engine


def find_revision(url: str) -> str | None:
    """The revision of the registry at `url` (`None` where its tables are older than all), left as it is.

    Raises `RegistryUnavailable` where there is none, or none that this code can use.
    """
    with _openable():
        engine = _make_engine(url, create=False, busy_timeout_ms=None)
        try:
            with engine.connect() as connection:
                found = found_revision(connection)
        finally:
            engine.dispose()
    if found is None:
        raise _no_registry("the database holds no registry")
    return found or None


@contextlib.contextmanager
def _openable() -> Iterator[None]:
    """Turn whatever keeps a database from being opened into `RegistryUnavailable` with its reason."""
    try:
        yield
    except (SQLAlchemyError, ImportError, OSError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise RegistryUnavailable(
            f"cannot open the registry: {reason}", hint="check --registry, --home and their permissions"
        ) from error
    except (ValueError, TypeError) as error:  # what they quote may be a piece of the password
        raise RegistryUnavailable(
            "cannot open the registry: its URL or its file is malformed", hint="check --registry"
        ) from error


def _no_registry(found: str) -> RegistryUnavailable:
    return RegistryUnavailable(
        f"cannot open the registry: {found}",
        hint="check --registry and BRANCHLINE_REGISTRY; `branchline route create` makes a new registry",
    )


def _make_engine(url: str, *, create: bool, busy_timeout_ms: int | None) -> Engine:
    parsed = make_url(url)
    if parsed.get_backend_name() == "sqlite":
        timeout_ms = BUSY_TIMEOUT_MS if busy_timeout_ms is None else busy_timeout_ms
        return _sqlite(url, parsed.database, create=create, busy_timeout_ms=timeout_ms)
    return _server(parsed, busy_timeout_ms)


def _server(url: URL, busy_timeout_ms: int | None) -> Engine:
    seconds = CONNECT_SECONDS if busy_timeout_ms is None else max(1, math.ceil(busy_timeout_ms / 1000))
    limits: dict[str, str | int] = {}
    if url.drivername in ("postgres", "postgresql"):  # the driver that the extra brings
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername == "postgresql+psycopg":
        limits = {"connect_timeout": seconds, "tcp_user_timeout": LOST_AFTER_MS, "keepalives_idle": CONNECT_SECONDS}
        limits = {name: value for name, value in limits.items() if name not in url.query}
    engine = create_engine(url, pool_pre_ping=True, connect_args=limits)
    if busy_timeout_ms is not None:
        event.listen(engine, "connect", partial(_server_connected, busy_timeout_ms))
    return engine


def _server_connected(busy_timeout_ms: int, connection: DBAPIConnection, _record: object) -> None:
    with contextlib.closing(connection.cursor()) as cursor:
        for name in ("lock_timeout", "statement_timeout"):
            cursor.execute(f"SET {name} = {busy_timeout_ms}")
    connection.commit()  # else the pool's first rollback takes them back


def _sqlite(url: str, database: str | None, *, create: bool, busy_timeout_ms: int) -> Engine:
    is_file = database and database != ":memory:" and not database.startswith("file:")  # that is a URI, not a path
    if database and is_file:
        if create:
            make_folder(Path(database).parent)
        elif not Path(database).exists():
            raise _no_registry("its file does not exist")
    engine = create_engine(url, connect_args={"timeout": busy_timeout_ms / 1000, "check_same_thread": False})
    event.listen(engine, "connect", partial(_sqlite_connected, busy_timeout_ms))
    event.listen(engine, "begin", _sqlite_begin)
    if database and is_file:
        WatchedFile(Path(database)).attach(engine)
    return engine


def _sqlite_connected(busy_timeout_ms: int, connection: sqlite3.Connection, _record: object) -> None:
    """WAL for readers beside a writer; deleted exemplar text is overwritten; we begin transactions ourselves."""
    connection.isolation_level = None
    for pragma in (
        f"busy_timeout={busy_timeout_ms}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        "secure_delete=ON",
    ):
        connection.execute(f"PRAGMA {pragma}")


def _sqlite_begin(connection: Connection) -> None:
    """Writers take the lock at once, so that no transaction fails half-way for it."""
    writes = connection.get_execution_options().get("branchline_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def found_revision(connection: Connection) -> str | None:
    """The registry's revision: `None` where there is no registry, `""` for one older than all revisions.

    Raises `RegistryUnavailable` for one that this code cannot use.
    """
    if not connection.dialect.has_table(connection, schema.registry.name):
        return None
    number = connection.execute(select(schema.registry.c.schema)).scalar()
    if number not in (SCHEMA_NUMBER, None):
        raise RegistryUnavailable(f"the registry has schema {number}, this version reads {SCHEMA_NUMBER}", hint=_NEWER)
    known = connection.dialect.has_table(connection, schema.REVISION_TABLE)
    found = connection.execute(select(schema.revisions.c.version_num)).scalar() if known else None
    if found is not None and found > REVISION:
        raise RegistryUnavailable(
            f"the registry has revision {found}, this version knows none after {REVISION}", hint=_NEWER
        )
    return found or ""


def _prepare(engine: Engine, *, create: bool) -> None:
    try:
        with engine.connect() as connection:
            found = found_revision(connection)
        if found is None and not create:
            raise _no_registry("the database holds no registry")
        if found != REVISION:
            _upgrade(engine)
    except BaseException:
        engine.dispose()
        raise


def _upgrade(engine: Engine) -> None:
    """Make all tables, or what has come since; of processes that open at once the first does it."""
    with engine.execution_options(branchline_writes=True).begin() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(select(func.pg_advisory_xact_lock(_LOCK)))
        found = found_revision(connection)
        if found is None:
            _create(connection)
        elif found != REVISION:
            from .migrations import upgrade

            log.info("the registry is upgraded from revision %s to %s", found or "0", REVISION)
            upgrade(connection)


def _create(connection: Connection) -> None:
    schema.metadata.create_all(connection)
    if connection.dialect.name == "postgresql":  # its statistics would keep copies of texts
        for table in (schema.examples, schema.corrections, schema.feedback):
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ALTER COLUMN text SET STATISTICS 0")
    connection.execute(insert(schema.registry).values(id=1, schema=SCHEMA_NUMBER, serial=0))
    connection.execute(insert(schema.classifier).values(id=1, state={"latest": 0, "stack": []}))
    connection.execute(insert(schema.revisions).values(version_num=REVISION))
