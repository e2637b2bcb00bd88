"""`route forget`: delete every text that was given for a route, whoever gave it."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Select, Table, delete, or_, select

from . import schema
from .errors import RegistryUnavailable
from .exemplars import BASE_LABEL
from .journal import Journal, require_route
from .scrub import scrub
from .types import Event


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was deleted: how many texts of each kind, and the digests of them all.

    `unscrubbed` says why the database's files still hold their bytes, `None` where they do not.
    """

    event: Event
    examples: int
    corrections: int
    feedback: int
    digests: frozenset[str]
    unscrubbed: RegistryUnavailable | None


def forget_texts(journal: Journal, name: str, *, why: str | None = None) -> Forgotten:
    """Delete all text of a route, or of `base`: rows, free pages and write-ahead log. Versions and history stay.

    Goes: its examples, corrections to it, feedback that waits for it, and corrections and feedback that took one of
    its examples elsewhere. What another route has as an example of its own stays there. A reader in the way of the
    last step raises nothing: the rows are gone, and only what is returned can still tell which they were.
    """
    examples, corrections, feedback = schema.examples, schema.corrections, schema.feedback
    with journal.transaction() as connection:
        if name != BASE_LABEL:
            require_route(connection, name)
        own = select(examples.c.text_digest).where(examples.c.route == name)
        corrected = _delete(connection, corrections, _of(corrections, name, own))
        waiting = _delete(connection, feedback, _of(feedback, name, own))
        removed = _delete(connection, examples, examples.c.route == name)
        payload = {"removed": len(removed), "corrections": len(corrected), "feedback": len(waiting)}
        event = _append(journal, connection, name, why, payload)
    unscrubbed = _unscrubbed(journal, examples, corrections, feedback)
    digests = frozenset([*removed, *corrected, *waiting])
    return Forgotten(event, len(removed), len(corrected), len(waiting), digests, unscrubbed)


def _unscrubbed(journal: Journal, *tables: Table) -> RegistryUnavailable | None:
    try:
        scrub(journal, *tables)
    except RegistryUnavailable as error:
        return error
    return None


def _of(table: Table, name: str, own: Select[str]) -> ColumnElement[bool]:
    return or_(table.c.label == name, table.c.text_digest.in_(own))


def _delete(connection: Connection, table: Table, chosen: ColumnElement[bool]) -> list[str]:
    digests = list(connection.execute(select(table.c.text_digest).where(chosen)).scalars())
    connection.execute(delete(table).where(chosen))
    return digests


def _append(journal: Journal, connection: Connection, name: str, why: str | None, payload: dict[str, int]) -> Event:
    if name == BASE_LABEL:
        return journal.append_for_base(connection, "route_forgotten", why=why, payload=payload)
    route = require_route(connection, name).name
    return journal.append(
        connection, "route_forgotten", route, why=why, payload={**payload, "examples_digest": None}
    ).event
