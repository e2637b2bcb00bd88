"""Example utterances of routes. Events hold only the digest of a route's set, never text."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, insert, select

from . import schema
from .errors import BadInput
from .journal import Change, Journal, require_route
from .rows import is_unicode, sha256_json, text_digest
from .scrub import scrub
from .types import RouteName

MAX_TEXT_CHARACTERS = 100_000


def add_examples(journal: Journal, name: str, texts: Sequence[str], *, source: str, why: str | None = None) -> Change:
    """Add texts to a route; those it has already stay as they are. `why` stays in the history."""
    require_texts(texts)
    table = schema.examples
    with journal.transaction() as connection:
        route = require_route(connection, name).name
        known = set(connection.execute(select(table.c.text_digest).where(table.c.route == route)).scalars())
        last = connection.execute(select(func.max(table.c.position)).where(table.c.route == route)).scalar() or 0
        new = {digest: one for one in texts if (digest := text_digest(one)) not in known}
        rows = [
            {"route": route, "text_digest": digest, "position": last + place, "text": one, "source": source[:200]}
            for place, (digest, one) in enumerate(new.items(), 1)
        ]
        if rows:
            connection.execute(insert(table), rows)
        return _append(journal, connection, route, {"added": len(rows)}, why)


def require_texts(texts: Sequence[str], *, what: str = "example") -> None:
    """Refuse texts that are empty, over-long or not Unicode; raises `BadInput` naming them all."""
    problems = []
    for place, one in enumerate(texts, 1):
        if not one.strip():
            problems.append(f"{what} {place} is empty")
        if len(one) > MAX_TEXT_CHARACTERS:
            problems.append(f"{what} {place} is over {MAX_TEXT_CHARACTERS} characters")
        if not is_unicode(one):
            problems.append(f"{what} {place} is not UTF-8 text")
        elif "\0" in one:  # PostgreSQL stores none
            problems.append(f"{what} {place} holds a NUL character")
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise BadInput("; ".join(problems[:20]) + more, hint=f"mend these {what}s; none was added")


def remove_examples(journal: Journal, name: str, texts: Sequence[str]) -> Change:
    """Delete texts of a route for good."""
    table = schema.examples
    with journal.transaction() as connection:
        route = require_route(connection, name).name
        chosen = [text_digest(one) for one in texts if is_unicode(one)]
        removed = connection.execute(
            delete(table).where(table.c.route == route, table.c.text_digest.in_(chosen))
        ).rowcount
        change = _append(journal, connection, route, {"removed": removed})
    scrub(journal, table, schema.feedback)  # a proposal of the same text may have left its bytes there
    return change


def examples_of(journal: Journal, name: str) -> list[str]:
    """A route's example texts in the order they came."""
    table = schema.examples
    with journal.reading() as connection:
        route = require_route(connection, name).name
        query = select(table.c.text).where(table.c.route == route).order_by(table.c.position)
        return list(connection.execute(query).scalars())


def _append(
    journal: Journal, connection: Connection, route: RouteName, payload: dict[str, object], why: str | None = None
) -> Change:
    table = schema.examples
    digests = connection.execute(
        select(table.c.text_digest).where(table.c.route == route).order_by(table.c.text_digest)
    ).scalars()
    found = list(digests)
    payload |= {"examples_digest": sha256_json(found) if found else None}
    return journal.append(connection, "examples_changed", route, why=why, payload=payload)
