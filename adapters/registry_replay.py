"""A registry's history played again: what its events say, compared with what its tables hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Table, select

from . import schema
from .fold import fold_classifier, fold_keys, fold_routes, route_to_json
from .records import event_from_row, key_from_row
from .rows import sha256_json, text_digest
from .types import ClassifierState, Event, RouteName, RouteState
from .view import read_classifier

MAX_PROBLEMS = 20


@dataclass(frozen=True, slots=True)
class Replay:
    """The state that a history leads to. `problems` are the places where the tables say otherwise."""

    serial: int
    routes: dict[RouteName, RouteState]
    classifier: ClassifierState
    problems: tuple[str, ...]


def replay(connection: Connection) -> Replay:
    """Fold all events anew and compare; one transaction, so that all is of one moment."""
    events = [event_from_row(row) for row in connection.execute(select(schema.events).order_by(schema.events.c.serial))]
    routes, classifier = fold_routes(events), fold_classifier(events)
    serial = int(connection.execute(select(schema.registry.c.serial)).scalar_one())
    problems = [
        *_serial_problems(events, serial),
        *_state_problems(connection, routes, classifier),
        *_key_problems(connection, events),
        *_row_problems(connection, events),
        *_text_problems(connection, routes),
    ]
    return Replay(serial, routes, classifier, tuple(problems))


def _serial_problems(events: Sequence[Event], serial: int) -> Iterator[str]:
    if [event.serial for event in events] != list(range(1, serial + 1)):
        yield f"the serial is {serial}, and there are {len(events)} events up to {events[-1].serial if events else 0}"


def _state_problems(
    connection: Connection, routes: dict[RouteName, RouteState], classifier: ClassifierState
) -> Iterator[str]:
    table = schema.routes
    stored = {row.name: (row.revision, row.state) for row in connection.execute(select(table))}
    folded = {name: (state.revision, route_to_json(state)) for name, state in routes.items()}
    for name in sorted({*stored, *folded}):
        if stored.get(name) != folded.get(RouteName(name)):
            yield f"route {name} is not as its events say"
    if read_classifier(connection) != classifier:
        yield "the classifier in force is not as its events say"


def _key_problems(connection: Connection, events: Sequence[Event]) -> Iterator[str]:
    stored = {row.id: key_from_row(row) for row in connection.execute(select(schema.keys))}
    folded = fold_keys(events)
    for name in sorted({*stored, *folded}):
        if stored.get(name) != folded.get(name):
            yield f"key {name} is not as its events say"


def _row_problems(connection: Connection, events: Sequence[Event]) -> Iterator[str]:
    """Immutable rows that an event points to: each has its event, and each event its row."""
    versions, classifiers, evidence = schema.versions.c, schema.classifiers.c, schema.evidence.c
    for what, kind, query, told in (
        (
            "versions",
            "published",
            select(versions.route, versions.number, versions.digest),
            lambda event: (event.route, event.number, event.payload["digest"]),
        ),
        (
            "classifiers",
            "classifier_published",
            select(classifiers.number, classifiers.digest),
            lambda event: (event.number, event.payload["digest"]),
        ),
        (
            "evidence",
            "evidence_added",
            select(evidence.serial, evidence.route, evidence.number, evidence.digest),
            lambda event: (event.serial, event.route, event.number, event.payload["digest"]),
        ),
    ):
        stored = {tuple(row) for row in connection.execute(query)}
        expected = {told(event) for event in events if event.kind == kind}
        if stored != expected:
            yield f"{len(stored ^ expected)} {what} have no event, or are missing"


def _text_problems(connection: Connection, routes: dict[RouteName, RouteState]) -> Iterator[str]:
    for table in (schema.examples, schema.corrections, schema.feedback):
        rows = connection.execute(select(table.c.text_digest, table.c.text))
        if wrong := sum(row.text_digest != text_digest(row.text) for row in rows):
            yield f"{wrong} texts of {table.name} do not have the digest they are filed under"
    for name, state in routes.items():
        if digest_of_examples(connection, schema.examples, name) != state.examples_digest:
            yield f"the examples of route {name} are not those of its last event"


def digest_of_examples(connection: Connection, table: Table, route: str) -> str | None:
    """What an event says of a route's set of examples."""
    found = sorted(connection.execute(select(table.c.text_digest).where(table.c.route == route)).scalars())
    return sha256_json(found) if found else None
