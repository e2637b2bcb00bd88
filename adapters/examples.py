"""Example utterances of routes. Text lives here and nowhere else; events hold only the digest of a route's set."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, insert, select, text

from . import schema
from .errors import BadInput
from .journal import Change, Journal, require_route, usable
from .rows import sha256_json, text_digest
from .types import RouteName

MAX_TEXT_CHARACTERS = 100_000


def add_examples(journal: Journal, name: str, texts: Sequence[str], *, source: str) -> Change:
    """Add texts to a route; those it has already stay as they are."""
    too_long = [i for i, one in enumerate(texts, 1) if len(one) > MAX_TEXT_CHARACTERS]
    if too_long:
        raise BadInput(f"example {too_long[0]} is over {MAX_TEXT_CHARACTERS} characters", hint="shorten it")
    table = schema.examples
    with journal.transaction() as connection:
        route = require_route(connection, name).name
        known = set(connection.execute(select(table.c.text_digest).where(table.c.route == route)).scalars())
        last = connection.execute(select(func.max(table.c.position)).where(table.c.route == route)).scalar() or 0
        new = {digest: one for one in texts if (digest := text_digest(one)) not in known}
        rows = [
            {"route": route, "text_digest": digest, "position": last + place, "text": one, "source": source}
            for place, (digest, one) in enumerate(new.items(), 1)
        ]
        if rows:
            connection.execute(insert(table), rows)
        return _append(journal, connection, route, {"added": len(rows)})


def remove_examples(journal: Journal, name: str, texts: Sequence[str]) -> Change:
    """Delete texts of a route for good."""
    table = schema.examples
    with journal.transaction() as connection:
        route = require_route(connection, name).name
        chosen = [text_digest(one) for one in texts]
        removed = connection.execute(
            delete(table).where(table.c.route == route, table.c.text_digest.in_(chosen))
        ).rowcount
        change = _append(journal, connection, route, {"removed": removed})
    _scrub(journal)
    return change


def forget_examples(journal: Journal, name: str, *, why: str | None = None) -> Change:
    """Delete all exemplar text of a route: rows, free pages and write-ahead log. Versions and history stay."""
    table = schema.examples
    with journal.transaction() as connection:
        route = require_route(connection, name).name
        removed = connection.execute(delete(table).where(table.c.route == route)).rowcount
        payload = {"removed": removed, "examples_digest": None}
        change = journal.append(connection, "route_forgotten", route, why=why, payload=payload)
    _scrub(journal)
    return change


def examples_of(journal: Journal, name: str) -> list[str]:
    """A route's example texts in the order they came."""
    table = schema.examples
    with journal.reading() as connection:
        route = require_route(connection, name).name
        query = select(table.c.text).where(table.c.route == route).order_by(table.c.position)
        return list(connection.execute(query).scalars())


def _append(journal: Journal, connection: Connection, route: RouteName, payload: dict[str, object]) -> Change:
    table = schema.examples
    digests = connection.execute(
        select(table.c.text_digest).where(table.c.route == route).order_by(table.c.text_digest)
    ).scalars()
    found = list(digests)
    payload |= {"examples_digest": sha256_json(found) if found else None}
    return journal.append(connection, "examples_changed", route, payload=payload)


def _scrub(journal: Journal) -> None:
    """SQLite overwrites deleted rows (`secure_delete`), but old pages wait in its log until it is cut."""
    if journal.engine.dialect.name != "sqlite":
        return
    with usable(), journal.engine.connect() as connection:
        connection.connection.cursor().execute(str(text("PRAGMA wal_checkpoint(TRUNCATE)")))
