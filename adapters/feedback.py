"""The queue of corrections that programs proposed: bounded, and without effect until an operator accepts.

Nothing here writes an event before that, so that whoever may propose can fill no more than the queue.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, true, update

from . import schema
from .corrections import Corrected, is_corrected, put_corrections, require_label
from .errors import NotFound, QueueFull, Refused
from .examples import require_texts
from .exemplars import BASE_LABEL, Exemplar
from .journal import Journal
from .rows import text_digest
from .scrub import scrub
from .types import RouteName

MAX_WAITING = 1000
MAX_WAITING_OF_ONE_SOURCE = 250
MAX_WAITING_CHARACTERS = 4_000_000
_MAX_TIMES = 1_000_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """A proposed correction. `times` is how often it came; `source` is who came first."""

    id: int
    label: str
    text: str
    source: str
    time: str
    times: int


@dataclass(frozen=True, slots=True)
class Choice:
    """Which of the queue: those with these ids, those of a source, or (neither given) all.

    A source is all of what it proposes for its own users, too: `key:app` is `key:app/anna` and `key:app/ben`.
    """

    ids: tuple[int, ...] = ()
    source: str | None = None


def queue_feedback(journal: Journal, label: str, text: str, *, source: str) -> None:
    """Propose that `text` belongs to `label`. What is corrected so or waits already changes nothing but its count.

    Raises `NotFound` for a route that is not there, `BadInput`, and `QueueFull`: nothing waiting is ever dropped.
    """
    require_texts([text], what="text")
    table = schema.feedback
    digest = text_digest(text)
    with journal.transaction() as connection:
        require_label(connection, label)
        mine = (table.c.label == label) & (table.c.text_digest == digest)
        times = connection.execute(select(table.c.times).where(mine)).scalar()
        if times is not None:
            connection.execute(update(table).where(mine).values(times=min(times + 1, _MAX_TIMES)))
            return
        _require_room(connection, source[:200])
        if is_corrected(connection, digest, label):
            return
        values = {"label": label, "text_digest": digest, "text": text, "source": source[:200], "times": 1}
        connection.execute(insert(table).values(**values, time=journal.now()))


def waiting_feedback(journal: Journal, choice: Choice = Choice()) -> list[Waiting]:
    """What waits, oldest first."""
    with journal.reading() as connection:
        return [_waiting(row) for row in _chosen(connection, choice)]


def accept_feedback(journal: Journal, choice: Choice, *, why: str | None = None) -> Corrected:
    """Put proposed corrections in force. Raises `NotFound` where an id does not wait, and `Refused` where the chosen
    ones contradict each other; then none is accepted.
    """
    with journal.transaction() as connection:
        rows = _chosen(connection, choice)
        _require_agreement(rows)
        _drop(connection, rows)
        return put_corrections(
            journal, connection, [Exemplar(row.label, row.text, row.source) for row in rows], why=why
        )


def reject_feedback(journal: Journal, choice: Choice, *, why: str | None = None) -> int:
    """Delete proposed corrections, text and all; how many. Raises `NotFound` as `accept_feedback`."""
    with journal.transaction() as connection:
        rows = _chosen(connection, choice)
        _drop(connection, rows)
        for label in sorted({row.label for row in rows}):
            payload = {"rejected": [row.text_digest for row in rows if row.label == label]}
            if label == BASE_LABEL:
                journal.append_for_base(connection, "feedback_rejected", why=why, payload=payload)
            else:
                journal.append(connection, "feedback_rejected", RouteName(label), why=why, payload=payload)
    scrub(journal, schema.feedback)
    return len(rows)


def _require_agreement(rows: Sequence[Row[*tuple[object, ...]]]) -> None:
    by_text: dict[str, list[str]] = {}
    for row in rows:
        by_text.setdefault(row.text_digest, []).append(f"{row.id} says {row.label}")
    torn = [", ".join(said) for said in by_text.values() if len(said) > 1]
    if torn:
        raise Refused(
            f"{len(torn)} texts are proposed for several routes: {'; '.join(torn[:5])}",
            hint="accept the right ones by id, and reject the others",
        )


def _require_room(connection: Connection, source: str) -> None:
    table = schema.feedback
    proposer = source.partition("/")[0]  # the cap is a key's: it may name as many users of its own as it likes
    of_source = func.count().filter(_is_of(proposer))
    characters = func.coalesce(func.sum(func.length(table.c.text)), 0)
    total, own, length = connection.execute(select(func.count(), of_source, characters).select_from(table)).one()
    if own >= MAX_WAITING_OF_ONE_SOURCE:
        raise QueueFull(
            f"{own} corrections of this source wait to be reviewed, which is all that one may have",
            hint=f"review them: `branchline route corrections list --source {proposer}`",
        )
    if total >= MAX_WAITING or length >= MAX_WAITING_CHARACTERS:
        raise QueueFull(
            f"{total} corrections of {length} characters wait to be reviewed, which is all that may",
            hint="review them: `branchline route corrections list`",
        )


def _chosen(connection: Connection, choice: Choice) -> Sequence[Row[*tuple[object, ...]]]:
    table = schema.feedback
    wanted: ColumnElement[bool] = true() if choice.source is None else _is_of(choice.source)
    if choice.ids:
        wanted &= table.c.id.in_(choice.ids)
    rows = connection.execute(select(table).where(wanted).order_by(table.c.id)).all()
    missing = sorted(set(choice.ids) - {row.id for row in rows})
    if missing:
        named = ", ".join(str(one) for one in missing[:20])
        raise NotFound(f"no feedback {named} waits", hint="see `branchline route corrections list`")
    return rows


def _is_of(source: str) -> ColumnElement[bool]:
    column = schema.feedback.c.source
    return (column == source) | column.startswith(f"{source}/", autoescape=True)


def _drop(connection: Connection, rows: Sequence[Row[*tuple[object, ...]]]) -> None:
    for row in rows:
        connection.execute(delete(schema.feedback).where(schema.feedback.c.id == row.id))


def _waiting(row: Row[*tuple[object, ...]]) -> Waiting:
    return Waiting(row.id, row.label, row.text, row.source, row.time, row.times)
