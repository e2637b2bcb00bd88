"""Corrections: texts that were routed wrong, with the label that is right. In force at once, until corrected again.

A text has one label: a correction stands in for every example of the same text, whatever route has it. The example
itself stays where it is, and counts again once the correction is removed. Events hold digests, never text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, delete, insert, select, update

from . import schema
from .errors import NotFound
from .examples import require_texts
from .exemplars import BASE_LABEL, Exemplar
from .journal import Journal, require_route
from .rows import text_digest
from .scrub import scrub
from .types import Event, EventKind, RouteName

OPERATOR = "correction:operator"
_DIGEST = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True, slots=True)
class Correction:
    """A correction in force; `text_digest` is how it is named."""

    text_digest: str
    label: str
    text: str
    source: str
    time: str


@dataclass(frozen=True, slots=True)
class Corrected:
    """What a correction did. `known` texts were corrected so already; `lost` counts what each label had to give."""

    event: Event | None
    added: int
    known: int
    lost: dict[str, int]


@dataclass(slots=True)
class _Moves:
    gained: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def correct(journal: Journal, label: str, texts: Sequence[str], *, why: str | None = None) -> Corrected:
    """Say that `texts` belong to the route `label`, or to no route (`base`). Raises `NotFound`, `BadInput`."""
    require_texts(texts, what="text")
    with journal.transaction() as connection:
        require_label(connection, label)
        return put_corrections(journal, connection, [Exemplar(label, one, OPERATOR) for one in texts], why=why)


def put_corrections(
    journal: Journal, connection: Connection, exemplars: Iterable[Exemplar], *, why: str | None = None
) -> Corrected:
    """Put checked corrections in force, inside a transaction; of two for one text the later holds.

    A text that is an example of that label is corrected all the same: it would not come up here were it routed right,
    and corrections speak where examples only compete. One event for each label that gained or lost a text.
    """
    moves: defaultdict[str, _Moves] = defaultdict(_Moves)
    serial = connection.execute(select(schema.registry.c.serial)).scalar_one() + 1  # of this change's first event
    stamp = {"serial": serial, "time": journal.now()}
    known, added = 0, 0
    for one in exemplars:
        digest = text_digest(one.text)
        if is_corrected(connection, digest, one.label):
            known += 1
        else:
            added += 1
            moves[one.label].gained.append(digest)
            for label in labels_of(connection, digest) - {one.label}:
                moves[label].lost.append(digest)
            _put(connection, digest, one, stamp)
        waiting = schema.feedback
        connection.execute(delete(waiting).where(waiting.c.text_digest == digest, waiting.c.label == one.label))
    event = _append_moves(journal, connection, "corrected", moves, why)
    return Corrected(event, added, known, {label: len(one.lost) for label, one in moves.items() if one.lost})


def corrections_in_force(journal: Journal) -> list[Correction]:
    """In the order in which they came."""
    table = schema.corrections
    columns = (table.c.text_digest, table.c.label, table.c.text, table.c.source, table.c.time)
    with journal.reading() as connection:
        found = connection.execute(select(*columns).order_by(table.c.serial, table.c.text_digest))
        return [Correction(*row) for row in found]


def remove_corrections(journal: Journal, digests: Sequence[str], *, why: str | None = None) -> int:
    """Take corrections back, each named by its text's digest or the first characters of it; their text is deleted.

    Raises `NotFound` naming all that are not there or not unique; then none is removed.
    """
    table = schema.corrections
    with journal.transaction() as connection:
        chosen: dict[str, str] = {}
        problems = []
        for given in digests:
            if not _DIGEST.fullmatch(given):
                problems.append(f"{given!r:.80} is no text digest, which has 4 to 64 of 0-9 and a-f")
                continue
            rows = connection.execute(
                select(table.c.text_digest, table.c.label).where(table.c.text_digest.startswith(given, autoescape=True))
            ).all()
            if len(rows) == 1:
                chosen[rows[0].text_digest] = rows[0].label
            else:
                problems.append(f"{given!r} names {len(rows)} corrections")
        if problems:
            raise NotFound("; ".join(problems), hint="see `branchline route corrections list --in-force`")
        moves: defaultdict[str, _Moves] = defaultdict(_Moves)
        for digest, label in chosen.items():
            connection.execute(delete(table).where(table.c.text_digest == digest))
            moves[label].lost.append(digest)
            for other in labels_of(connection, digest) - {label}:
                moves[other].gained.append(digest)
        _append_moves(journal, connection, "correction_removed", moves, why)
    scrub(journal, table, schema.feedback)  # where it came from there
    return len(chosen)


def require_label(connection: Connection, label: str) -> None:
    """Raise `NotFound` unless `label` is `base` or a route."""
    if label != BASE_LABEL:
        require_route(connection, label)


def is_corrected(connection: Connection, digest: str, label: str) -> bool:
    """Whether a correction in force says that the text belongs to `label`."""
    table = schema.corrections
    found = select(table.c.label).where(table.c.text_digest == digest)
    return connection.execute(found).scalar() == label


def labels_of(connection: Connection, digest: str) -> set[str]:
    """What the text counts for now: its correction's label, else the routes that have it as an example."""
    corrections, examples = schema.corrections, schema.examples
    corrected = connection.execute(select(corrections.c.label).where(corrections.c.text_digest == digest)).scalar()
    if corrected is not None:
        return {corrected}
    return set(connection.execute(select(examples.c.route).where(examples.c.text_digest == digest)).scalars())


def _put(connection: Connection, digest: str, one: Exemplar, stamp: Mapping[str, object]) -> None:
    table = schema.corrections
    values = {"label": one.label, "text": one.text, "source": one.source[:200], **stamp}
    if connection.execute(update(table).where(table.c.text_digest == digest).values(values)).rowcount == 0:
        connection.execute(insert(table).values(text_digest=digest, **values))


def _append_moves(
    journal: Journal, connection: Connection, kind: EventKind, moves: dict[str, _Moves], why: str | None
) -> Event | None:
    """An event for each label, in their order; the last one, `None` where nothing moved."""
    event = None
    for label in sorted(moves):
        payload = {"gained": moves[label].gained, "lost": moves[label].lost}
        if label == BASE_LABEL:
            event = journal.append_for_base(connection, kind, why=why, payload=payload)
        else:
            event = journal.append(connection, kind, RouteName(label), why=why, payload=payload).event
    return event
