"""What gateways follow: everything that changed in the registry since they last looked, read in one moment."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Column, Connection, Row, Select, select

from . import schema
from .fold import route_from_json
from .keys import ApiKey
from .records import event_from_row, key_from_row, version_from_row
from .types import KEY_EVENTS, AdapterVersion, ClassifierState, Event, RouteState

MOST_NAMES = 10_000  # in one query: PostgreSQL takes 65,535 parameters


@dataclass(frozen=True, slots=True)
class View:
    """What changed after a serial, read in one moment: the routes and the keys that have newer events, whole.

    `last_serials` maps each route to its newest event's serial; `live_classifier` is a digest. Revoked keys are there.
    """

    serial: int
    events: tuple[Event, ...]
    routes: tuple[RouteState, ...]
    last_serials: Mapping[str, int]
    versions: tuple[AdapterVersion, ...]
    live_classifier: str | None
    keys: tuple[ApiKey, ...] = ()


def read_view(connection: Connection, serial: int, after: int) -> View:
    """What changed after the serial `after`, where the registry is at `serial`."""
    newer = schema.events.c.serial > after
    rows = connection.execute(select(schema.events).where(newer).order_by(schema.events.c.serial))
    events = tuple(event_from_row(row) for row in rows)
    last: dict[str, int] = {event.route: event.serial for event in events if event.route is not None}
    states = _rows_of(connection, select(schema.routes.c.state), schema.routes.c.name, last)
    routes = tuple(sorted((route_from_json(row.state) for row in states), key=_name))
    chosen = _rows_of(connection, select(schema.versions), schema.versions.c.route, last)
    versions = tuple(version_from_row(row) for row in chosen)
    number = read_classifier(connection).live
    digest = select(schema.classifiers.c.digest).where(schema.classifiers.c.number == number)
    classifier = connection.execute(digest).scalar()
    return View(serial, events, routes, last, versions, classifier, _keys_of(connection, events))


def _keys_of(connection: Connection, events: Sequence[Event]) -> tuple[ApiKey, ...]:
    """The keys that `events` are about."""
    ids = {str(event.payload["id"]) for event in events if event.kind in KEY_EVENTS}
    return tuple(key_from_row(row) for row in _rows_of(connection, select(schema.keys), schema.keys.c.id, ids))


def _rows_of(
    connection: Connection, query: Select[Any], column: Column[Any], names: Collection[str]
) -> Iterator[Row[Any]]:
    """The rows of `query` whose `column` is among `names`."""
    ordered = sorted(names)
    for start in range(0, len(ordered), MOST_NAMES):
        yield from connection.execute(query.where(column.in_(ordered[start : start + MOST_NAMES])))


def read_classifier(connection: Connection) -> ClassifierState:
    state = connection.execute(select(schema.classifier.c.state)).scalar_one()
    return ClassifierState(latest=state["latest"], stack=tuple(state["stack"]))


def _name(state: RouteState) -> str:
    return state.name  # sorted here: databases sort text differently
