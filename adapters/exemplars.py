"""What the routes and the base are known by: examples and the corrections in force, each with its source."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from . import schema
from .journal import Journal
from .rows import sha256_json
from .types import Event, EventKind
from .view import View

BASE_LABEL = "base"
EVENTS: frozenset[EventKind] = frozenset({"examples_changed", "route_forgotten", "corrected", "correction_removed"})


@dataclass(frozen=True, slots=True)
class Exemplar:
    """A text and where it belongs: `label` is a route's name or `base`.

    `source` says who said so: `operator`, `file NAME`, `correction:operator` or `feedback:WHO`.
    """

    label: str
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Exemplars:
    """All exemplars at one moment. `digest` is over the (label, text digest) pairs, `None` where there are none.

    The same pairs have the same digest, in whatever order and from whatever sources they came.
    """

    digest: str | None
    rows: tuple[Exemplar, ...]


def exemplars_of(journal: Journal) -> Exemplars:
    """Examples of all routes and corrections in force, read in one moment.

    A correction stands in for every example of the same text, also for one that is added after it.
    """
    with journal.reading() as connection:
        return read_exemplars(connection)


def read_exemplars(connection: Connection) -> Exemplars:
    """As `exemplars_of`, inside a transaction."""
    examples, corrections = schema.examples, schema.corrections
    corrected = select(corrections.c.text_digest)
    own = (
        select(examples.c.route.label("label"), examples.c.text_digest, examples.c.text, examples.c.source)
        .where(examples.c.text_digest.not_in(corrected))
        .order_by(examples.c.route, examples.c.position)
    )
    later = select(corrections.c.label, corrections.c.text_digest, corrections.c.text, corrections.c.source).order_by(
        corrections.c.serial, corrections.c.text_digest
    )
    found = [*connection.execute(own), *connection.execute(later)]
    pairs = sorted([row.label, row.text_digest] for row in found)
    rows = tuple(Exemplar(row.label, row.text, row.source) for row in found)
    return Exemplars(sha256_json(pairs) if pairs else None, rows)


def base_events(journal: Journal) -> list[Event]:
    """What happened to corrections to the base, in order."""
    return [one for one in journal.events() if one.route is None and one.kind in EVENTS | {"feedback_rejected"}]


def exemplars_changed(view: View) -> bool:
    """Whether what a gateway has to learn may change the exemplars: then, and only then, it reads them again."""
    return any(event.kind in EVENTS for event in view.events)
