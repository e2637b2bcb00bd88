"""The registry's tables, in SQLAlchemy Core that SQLite and PostgreSQL both run.

`events` is the truth; `routes` and `classifier` are folds of it, written in the event's own transaction.
`versions`, `evidence` and `classifiers` are immutable rows an event points to; `examples`, `corrections` and
`feedback` hold text outside the event log, so that forgetting truly deletes it; `keys` hold what tells an API key,
never the key; `gateways` are heartbeats.

Tables that came later are made when an older registry is opened: the schema's number stays, so that gateways of
both versions can share it while a fleet is being upgraded.
"""

from __future__ import annotations

import contextlib
import math
import sqlite3
from functools import partial
from pathlib import Path

from sqlalchemy import (
    JSON,
    Column,
    Connection,
    Engine,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    insert,
    inspect,
    make_url,
    select,
)
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .errors import RegistryUnavailable
from .files import make_folder

SCHEMA_NUMBER = 1
BUSY_TIMEOUT_MS = 10_000

metadata = MetaData()
registry = Table(
    "registry",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema", Integer, nullable=False),
    Column("serial", Integer, nullable=False),
)
events = Table(
    "events",
    metadata,
    Column("serial", Integer, primary_key=True, autoincrement=False),
    Column("time", String(32), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("route", String(63), index=True),
    Column("number", Integer),
    Column("actor", String(200), nullable=False),
    Column("why", Text),
    Column("payload", JSON, nullable=False),
)
routes = Table(
    "routes",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("state", JSON, nullable=False),
)
versions = Table(
    "versions",
    metadata,
    Column("route", String(63), ForeignKey("routes.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("published_at", String(32), nullable=False),
    Column("manifest", JSON, nullable=False),
    UniqueConstraint("route", "digest"),
)
evidence = Table(
    "evidence",
    metadata,
    Column("serial", Integer, ForeignKey("events.serial"), primary_key=True, autoincrement=False),
    Column("route", String(63), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
)
examples = Table(
    "examples",
    metadata,
    Column("route", String(63), ForeignKey("routes.name"), primary_key=True),
    Column("text_digest", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("source", String(200), nullable=False),
)
corrections = Table(
    "corrections",
    metadata,
    Column("text_digest", String(64), primary_key=True),
    Column("label", String(63), nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("source", String(200), nullable=False),
    Column("time", String(32), nullable=False),
    Column("serial", Integer, nullable=False),
)
feedback = Table(
    "feedback",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("label", String(63), nullable=False),
    Column("text_digest", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("source", String(200), nullable=False, index=True),
    Column("time", String(32), nullable=False),
    Column("times", Integer, nullable=False),
    UniqueConstraint("label", "text_digest"),
    sqlite_autoincrement=True,  # an id that was accepted or rejected never comes to mean another text
)
classifiers = Table(
    "classifiers",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("published_at", String(32), nullable=False),
    Column("summary", JSON, nullable=False),
)
classifier = Table(
    "classifier",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("state", JSON, nullable=False),
)
keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("role", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # sha256 of the secret, which is kept nowhere
    Column("routes", JSON(none_as_null=True)),  # NULL: all routes
    Column("limits", JSON, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("revoked_at", String(32)),
)
gateways = Table(
    "gateways",
    metadata,
    Column("gateway_id", String(64), primary_key=True),
    Column("last_seen", Float, nullable=False),
    Column("serial", Integer, nullable=False),
    Column("document", JSON, nullable=False),
)


def connect(url: str, *, create: bool = True, busy_timeout_ms: int | None = None) -> Engine:
    """Open the registry at `url`, and make it where it is new; raises `RegistryUnavailable` with the reason.

    Without `create` one that is not there is not made either. `busy_timeout_ms` bounds what is waited for other
    writers; on PostgreSQL also a whole statement and, in whole seconds, the connection. Without it SQLite waits ten
    seconds, PostgreSQL as long as its administrator says.
    """
    try:
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            timeout_ms = BUSY_TIMEOUT_MS if busy_timeout_ms is None else busy_timeout_ms
            engine = _sqlite(url, parsed.database, create=create, busy_timeout_ms=timeout_ms)
        else:
            engine = _server(url, busy_timeout_ms)
        _prepare(engine, create=create)
    except (SQLAlchemyError, ImportError, OSError) as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise RegistryUnavailable(
            f"cannot open the registry: {reason}", hint="check --registry, --home and their permissions"
        ) from error
    return engine


def _server(url: str, busy_timeout_ms: int | None) -> Engine:
    if busy_timeout_ms is None:
        return create_engine(url, pool_pre_ping=True)
    seconds = max(1, math.ceil(busy_timeout_ms / 1000))
    engine = create_engine(url, pool_pre_ping=True, connect_args={"connect_timeout": seconds})
    event.listen(engine, "connect", partial(_server_connected, busy_timeout_ms))
    return engine


def _server_connected(busy_timeout_ms: int, connection: DBAPIConnection, _record: object) -> None:
    with contextlib.closing(connection.cursor()) as cursor:
        for name in ("lock_timeout", "statement_timeout"):
            cursor.execute(f"SET {name} = {busy_timeout_ms}")
    connection.commit()  # else the pool's first rollback takes them back


def _sqlite(url: str, database: str | None, *, create: bool, busy_timeout_ms: int) -> Engine:
    if database and database != ":memory:" and not database.startswith("file:"):  # that is a URI, not a path
        if create:
            make_folder(Path(database).parent)
        elif not Path(database).exists():
            raise FileNotFoundError("there is none any more")
    engine = create_engine(url, connect_args={"timeout": busy_timeout_ms / 1000, "check_same_thread": False})
    event.listen(engine, "connect", partial(_sqlite_connected, busy_timeout_ms))
    event.listen(engine, "begin", _sqlite_begin)
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


def _prepare(engine: Engine, *, create: bool) -> None:
    found = _schema_number(engine)
    if (found is None and create) or (found == SCHEMA_NUMBER and _lacks_tables(engine)):
        try:
            _create(engine)
        except DBAPIError:  # of two processes that make the tables at once, PostgreSQL lets one fail
            if _lacks_tables(engine):
                raise
        found = _schema_number(engine)
    if found != SCHEMA_NUMBER:
        raise RegistryUnavailable(
            f"the registry has schema {found}, this version reads {SCHEMA_NUMBER}",
            hint="use the Branchline version that wrote it",
        )


def _schema_number(engine: Engine) -> int | None:
    with engine.connect() as connection:
        exists = engine.dialect.has_table(connection, registry.name)
        return connection.execute(select(registry.c.schema)).scalar() if exists else None


def _lacks_tables(engine: Engine) -> bool:
    return not set(metadata.tables).issubset(inspect(engine).get_table_names())


def _create(engine: Engine) -> None:
    """Make all tables in one transaction; whoever comes second finds them."""
    with engine.execution_options(branchline_writes=True).begin() as connection:
        metadata.create_all(connection)
        if engine.dialect.name == "postgresql":  # its statistics would keep copies of texts
            for table in (examples, corrections, feedback):
                connection.exec_driver_sql(f"ALTER TABLE {table.name} ALTER COLUMN text SET STATISTICS 0")
        if connection.execute(select(registry.c.id)).first() is None:
            connection.execute(insert(registry).values(id=1, schema=SCHEMA_NUMBER, serial=0))
            connection.execute(insert(classifier).values(id=1, state={"latest": 0, "stack": []}))
