"""Requests that are done once: what stands behind a client's Idempotency-Key, for a day, for all gateways.

A request is claimed, done, and its answer filed. Each event that it writes moves its row in the event's own
transaction, so that whoever asks after a crash learns whether it was done; and who comes back after another has taken
over can write no more.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update

from . import schema
from .errors import Conflict
from .journal import Beside, Journal
from .types import Event

KEPT_SECONDS = 24 * 3600.0
LEASE_SECONDS = 120.0  # who has not finished by then has died
Found = Literal["claimed", "running", "answered", "lost", "other"]


@dataclass(frozen=True, slots=True)
class Request:
    """Who asks, the key it gave, and the digest of what it asks for."""

    principal: str
    key: str
    digest: str


@dataclass(frozen=True, slots=True)
class Claim:
    """What was found: `claimed` is ours to do, `running` is being done by another, `answered` has its `answer`.

    `lost` was done as far as the event `serial`, by who died before it could say so; `other` is another request.
    """

    found: Found
    request: Request
    token: str = ""
    answer: str = ""
    serial: int = 0

    @property
    def beside(self) -> Beside:
        """For `Journal.acting_as`: marks the row with each event. Raises `Conflict` where another took over."""

        def mark(connection: Connection, event: Event) -> None:
            changed = update(schema.repeats).where(_mine(self)).values(serial=event.serial)
            if connection.execute(changed).rowcount == 0:
                raise Conflict("this request took too long, and another took it over", hint="ask again with its key")

        return mark


def claim(journal: Journal, request: Request, *, again: bool, clock: Callable[[], float] = time.time) -> Claim:
    """Take a request to do, or learn what became of it. With `again` it may be done twice, so none is `lost`."""
    table, now = schema.repeats, clock()
    same = (table.c.principal == request.principal) & (table.c.key == request.key)
    with journal.transaction() as connection:
        connection.execute(delete(table).where(table.c.time < now - KEPT_SECONDS))
        row = connection.execute(select(table).where(same)).first()
        if row is not None:
            found = _found(row.digest, row.answer, row.serial, now - row.time, request, again=again)
            if found != "claimed":
                return Claim(found, request, answer=row.answer or "", serial=row.serial or 0)
            connection.execute(delete(table).where(same))
        taken = Claim("claimed", request, uuid.uuid4().hex)
        values = {"principal": request.principal, "key": request.key, "digest": request.digest}
        connection.execute(insert(table).values(**values, token=taken.token, time=now))
        return taken


def file_answer(journal: Journal, taken: Claim, answer: str) -> None:
    """Keep the answer for whoever asks again."""
    with journal.transaction() as connection:
        connection.execute(update(schema.repeats).where(_mine(taken)).values(answer=answer))


def give_up(journal: Journal, taken: Claim) -> None:
    """Have whoever asks again begin at once: nothing was done, or what was done is known by its event."""
    table = schema.repeats
    with journal.transaction() as connection:
        connection.execute(delete(table).where(_mine(taken), table.c.serial.is_(None)))
        over = table.c.time - LEASE_SECONDS
        connection.execute(update(table).where(_mine(taken)).values(time=over))


def _found(digest: str, answer: str | None, serial: int | None, age: float, request: Request, *, again: bool) -> Found:
    if digest != request.digest:
        return "other"
    if answer is not None:
        return "answered"
    if age < LEASE_SECONDS:
        return "running"
    return "claimed" if again or serial is None else "lost"


def _mine(taken: Claim) -> ColumnElement[bool]:
    table, request = schema.repeats, taken.request
    return (table.c.principal == request.principal) & (table.c.key == request.key) & (table.c.token == taken.token)
