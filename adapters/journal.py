"""The event journal under the registry: the one way to write, and everything that is read.

A write transaction first locks the registry's row, which orders all writers; it appends events, each with the next
serial, and the folded view beside them: all or nothing.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Self

from sqlalchemy import Connection, Engine, delete, extract, func, insert, select, update
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from . import schema
from .database import connect
from .errors import BadInput, NotFound, RegistryUnavailable
from .fold import apply_to_classifier, apply_to_route, route_from_json, route_to_json
from .notices import CHANNEL
from .records import (
    classifier_from_row,
    event_from_row,
    event_row,
    gateway_document,
    gateway_from_row,
    version_from_row,
)
from .rows import is_unicode
from .types import (
    AdapterVersion,
    ClassifierState,
    ClassifierVersion,
    Event,
    EventKind,
    GatewayRow,
    RouteName,
    RouteState,
)
from .view import View, read_classifier, read_view

Payload = Mapping[str, object]
Beside = Callable[[Connection, Event], None]
_SERVER_SECONDS = extract("epoch", func.clock_timestamp())  # since 1970, by PostgreSQL's clock


@dataclass(frozen=True, slots=True)
class Change:
    """What one operation did: its event, and the route as it stands after it."""

    event: Event
    state: RouteState


def utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def local_actor() -> str:
    """user@host, for the audit trail of the command line."""
    with contextlib.suppress(OSError, KeyError):
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return "unknown"


@contextlib.contextmanager
def usable() -> Iterator[None]:
    """Turn a database that fails into `RegistryUnavailable` with its reason."""
    try:
        yield
    except SQLAlchemyError as error:
        reason = error.orig if isinstance(error, DBAPIError) else error
        raise RegistryUnavailable(
            f"the registry cannot be used: {reason}", hint="check the database, its disk and its permissions"
        ) from error


class Journal:
    """One registry database, many processes. Methods raise `RegistryUnavailable` where it cannot be used."""

    def __init__(
        self, engine: Engine, *, actor: str, clock: Callable[[], str] = utc_now, beside: Beside | None = None
    ) -> None:
        self.engine = engine
        # PostgreSQL's default would let another writer's commit fall between two reads of one transaction.
        whole = {} if engine.dialect.name == "sqlite" else {"isolation_level": "REPEATABLE READ"}
        self._snapshots = engine.execution_options(**whole)
        self._actor = actor
        self._clock = clock
        self._beside = beside

    @classmethod
    def open(cls, url: str, *, actor: str | None = None, create: bool = True) -> Self:
        """The registry at `url`, made where it is new unless `create` is false; raises `RegistryUnavailable`."""
        return cls(connect(url, create=create), actor=actor or local_actor())

    @classmethod
    def open_existing(cls, url: str, *, actor: str, busy_timeout_ms: int) -> Self:
        """As `open`, but never makes a registry where there is none, and waits no longer for one that is locked."""
        return cls(connect(url, create=False, busy_timeout_ms=busy_timeout_ms), actor=actor)

    def acting_as(self, actor: str, *, beside: Beside | None = None) -> Self:
        """The same registry, whose events name `actor`. It shares the connections: close only one of both.

        `beside` is called with each event inside its transaction, which what it raises rolls back.
        """
        return type(self)(self.engine, actor=actor, clock=self._clock, beside=beside)

    def close(self) -> None:
        self.engine.dispose()

    def now(self) -> str:
        """The time as events carry it."""
        return self._clock()

    # -- writing --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A write transaction that holds the registry's row; rolled back on any error."""
        with usable(), self.engine.execution_options(branchline_writes=True).begin() as connection:
            connection.execute(select(schema.registry.c.serial).with_for_update())
            yield connection

    def append(
        self,
        connection: Connection,
        kind: EventKind,
        route: RouteName,
        number: int | None = None,
        *,
        why: str | None = None,
        payload: Payload | None = None,
    ) -> Change:
        """Write one event of a route and the route's view of it, inside `transaction`."""
        event = self._insert(connection, kind, route, number, why, payload)
        before = read_route(connection, route)
        after = apply_to_route(before, event)
        document = {"revision": after.revision, "state": route_to_json(after)}
        if before is None:
            connection.execute(insert(schema.routes).values(name=route, **document))
        else:
            connection.execute(update(schema.routes).where(schema.routes.c.name == route).values(document))
        return Change(event, after)

    def append_for_base(
        self, connection: Connection, kind: EventKind, *, why: str | None = None, payload: Payload
    ) -> Event:
        """Write one event that belongs to no route, inside `transaction`."""
        return self._insert(connection, kind, None, None, why, payload)

    def append_classifier(
        self, connection: Connection, kind: EventKind, number: int, *, why: str | None = None, payload: Payload
    ) -> Event:
        """Write one event of the classifier and its view, inside `transaction`."""
        event = self._insert(connection, kind, None, number, why, payload)
        after = apply_to_classifier(read_classifier(connection), event)
        connection.execute(update(schema.classifier).values(state={"latest": after.latest, "stack": list(after.stack)}))
        return event

    def _insert(
        self,
        connection: Connection,
        kind: EventKind,
        route: RouteName | None,
        number: int | None,
        why: str | None,
        payload: Payload | None,
    ) -> Event:
        taken = update(schema.registry).values(serial=schema.registry.c.serial + 1)
        serial = connection.execute(taken.returning(schema.registry.c.serial)).scalar_one()
        _require_text(why or "", payload or {})
        event = Event(serial, self._clock(), kind, route, number, self._actor, why, payload or {})
        connection.execute(insert(schema.events).values(event_row(event)))
        if self._beside is not None:
            self._beside(connection, event)
        if connection.dialect.name == "postgresql":  # heard when this is committed, and not before
            connection.execute(select(func.pg_notify(CHANNEL, "")))
        return event

    # -- reading --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def reading(self) -> Iterator[Connection]:
        """A read transaction: everything read inside is of one moment."""
        with usable(), self._snapshots.begin() as connection:
            yield connection

    def serial(self) -> int:
        with self.reading() as connection:
            return _serial(connection)

    def events(self, *, after: int = 0, route: str | None = None, limit: int | None = None) -> list[Event]:
        """Events with a serial over `after`, in order; of one route where `route` is given; at most `limit`."""
        query = select(schema.events).where(schema.events.c.serial > after).order_by(schema.events.c.serial)
        query = query.limit(limit)
        if route is not None:
            query = query.where(schema.events.c.route == route)
        with self.reading() as connection:
            return [event_from_row(row) for row in connection.execute(query)]

    def view(self, *, after: int = 0) -> View:
        """Everything that a gateway at serial `after` has to learn."""
        with self.reading() as connection:
            return read_view(connection, _serial(connection), after)

    def newer_view(self, *, after: int) -> View | None:
        """As `view`, `None` where nothing changed."""
        with self.reading() as connection:
            serial = _serial(connection)
            return None if serial == after else read_view(connection, serial, after)

    def routes(self) -> list[RouteState]:
        with self.reading() as connection:
            rows = connection.execute(select(schema.routes.c.state).order_by(schema.routes.c.name))
            return [route_from_json(row.state) for row in rows]

    def route(self, name: str) -> RouteState:
        """Raises `NotFound`."""
        with self.reading() as connection:
            return require_route(connection, name)

    def versions(self, route: str | None = None) -> list[AdapterVersion]:
        query = select(schema.versions).order_by(schema.versions.c.route, schema.versions.c.number)
        if route is not None:
            query = query.where(schema.versions.c.route == route)
        with self.reading() as connection:
            return [version_from_row(row) for row in connection.execute(query)]

    def version(self, route: str, number: int) -> AdapterVersion:
        """Raises `NotFound`."""
        query = select(schema.versions).where(schema.versions.c.route == route, schema.versions.c.number == number)
        with self.reading() as connection:
            row = connection.execute(query).first()
            if row is None:
                raise NotFound(f"no version {route}@{number}", hint=f"see `branchline adapter list {route}`")
            return version_from_row(row)

    def evidence_digests(self, route: str, number: int) -> list[str]:
        """Digests of a version's evidence, oldest first."""
        table = schema.evidence
        query = select(table.c.digest).where(table.c.route == route, table.c.number == number).order_by(table.c.serial)
        with self.reading() as connection:
            return list(connection.execute(query).scalars())

    def classifier_state(self) -> ClassifierState:
        with self.reading() as connection:
            return read_classifier(connection)

    def classifiers(self) -> list[ClassifierVersion]:
        with self.reading() as connection:
            rows = connection.execute(select(schema.classifiers).order_by(schema.classifiers.c.number))
            return [classifier_from_row(row) for row in rows]

    # -- gateways: heartbeats, outside the event log --------------------------------------------------------------

    def beat(self, gateway: GatewayRow) -> None:
        """Write a gateway's heartbeat over its last one; on a server that keeps time itself, by the server's clock."""
        values: dict[str, object] = {"serial": gateway.serial, "document": gateway_document(gateway)}
        values["last_seen"] = gateway.last_seen
        table = schema.gateways
        with usable(), self.engine.execution_options(branchline_writes=True).begin() as connection:
            if connection.dialect.name == "postgresql":  # nobody misses a heartbeat that a power cut took
                connection.execute(select(func.set_config("synchronous_commit", "off", True)))
                values["last_seen"] = _SERVER_SECONDS
            mine = table.c.gateway_id == gateway.gateway_id
            if connection.execute(update(table).where(mine).values(values)).rowcount == 0:
                connection.execute(insert(table).values(gateway_id=gateway.gateway_id, **values))

    def forget_gateway(self, gateway_id: str) -> None:
        with usable(), self.engine.execution_options(branchline_writes=True).begin() as connection:
            connection.execute(delete(schema.gateways).where(schema.gateways.c.gateway_id == gateway_id))

    def gateways(self) -> list[GatewayRow]:
        """All heartbeats, when they were by this machine's clock: gateways' clocks may be off by any time."""
        with self.reading() as connection:
            rows = connection.execute(select(schema.gateways).order_by(schema.gateways.c.gateway_id))
            found = [gateway_from_row(row) for row in rows]
            ahead = _ahead_of_server(connection) if found else 0.0
        return [replace(row, last_seen=row.last_seen + ahead) for row in found]


def _ahead_of_server(connection: Connection) -> float:
    """Seconds by which this machine's clock is ahead of the database's; 0 where that is a file on this machine."""
    if connection.dialect.name != "postgresql":
        return 0.0
    return time.time() - float(connection.execute(select(_SERVER_SECONDS)).scalar_one())


def _require_text(why: str, payload: Payload) -> None:
    """Raise `BadInput` for what not every database keeps, or no document can say again."""
    if not is_unicode(why) or "\0" in why:
        raise BadInput("the reason given is not UTF-8 text without NUL", hint="write it in UTF-8")
    if not is_unicode(json.dumps(dict(payload), ensure_ascii=False)):
        raise BadInput("what was given is not UTF-8 text", hint="write it in UTF-8")


def _serial(connection: Connection) -> int:
    return int(connection.execute(select(schema.registry.c.serial)).scalar_one())


def require_route(connection: Connection, name: str) -> RouteState:
    state = read_route(connection, name)
    if state is None:
        raise NotFound(f"no route {name!r}", hint="see `branchline route list`, or `branchline route create`")
    return state


def read_route(connection: Connection, name: str) -> RouteState | None:
    row = connection.execute(select(schema.routes.c.state).where(schema.routes.c.name == name)).first()
    return None if row is None else route_from_json(row.state)


def require_number(state: RouteState, number: int) -> None:
    if not 1 <= number <= state.latest:
        raise NotFound(f"no version {state.name}@{number}", hint=f"see `branchline adapter list {state.name}`")
