"""A registry copied into an empty one of another database: all of it or nothing, checked on both sides.

The events are played again, and the state they lead to is what is written; the copy is refused where that is not the
state that the registry itself holds. Heartbeats stay behind, and so do the files of the store.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Table, func, insert, select, text, update

from . import schema
from .errors import Refused
from .fold import route_to_json
from .journal import Journal
from .registry_replay import Replay, replay
from .rows import sha256_json

_BATCH = 500
# In the order that foreign keys want. `routes` and `classifier` are written from the replayed events.
COPIED: tuple[Table, ...] = (
    schema.events,
    schema.versions,
    schema.evidence,
    schema.examples,
    schema.corrections,
    schema.feedback,
    schema.classifiers,
    schema.keys,
    schema.repeats,
)


@dataclass(frozen=True, slots=True)
class Copied:
    """What was copied: everything up to `serial`, so many rows of each table, so many bytes of versions left behind."""

    serial: int
    rows: Mapping[str, int]
    store_bytes: int


def copy_registry(source: Journal, target: Journal) -> Copied:
    """Copy the source, as it is at this moment, into an empty target. Changes made meanwhile are not in it.

    Raises `Refused` where the target holds anything, and where the source contradicts its own events (every place).
    """
    with source.reading() as reading, target.transaction() as writing:
        _require_empty(writing)
        played = replay(reading)
        _require_sound(played, "the registry to copy")
        _write_state(writing, played)
        counts = {table.name: _copy_table(reading, writing, table) for table in COPIED}
        _set_next_feedback_id(writing, _last_feedback_id(reading))
        _require_same(reading, writing, played)
        sizes = (manifest["size_bytes"] for manifest in reading.execute(select(schema.versions.c.manifest)).scalars())
        return Copied(played.serial, {"routes": len(played.routes), **counts}, sum(sizes))


def _require_empty(connection: Connection) -> None:
    filled = [table.name for table in (schema.routes, *COPIED) if connection.execute(select(table).limit(1)).first()]
    if filled:
        raise Refused(
            f"the registry to copy into is not empty: it has {', '.join(filled)}", hint="name a database of its own"
        )


def _require_sound(played: Replay, what: str) -> None:
    if played.problems:
        shown = "; ".join(played.problems[:20])
        raise Refused(
            f"{what} contradicts its own events: {shown}", hint="nothing was copied; restore it from a backup"
        )


def _write_state(connection: Connection, played: Replay) -> None:
    rows = [
        {"name": name, "revision": state.revision, "state": route_to_json(state)}
        for name, state in played.routes.items()
    ]
    if rows:
        connection.execute(insert(schema.routes), rows)
    classifier = {"latest": played.classifier.latest, "stack": list(played.classifier.stack)}
    connection.execute(update(schema.classifier).values(state=classifier))
    connection.execute(update(schema.registry).values(serial=played.serial))


def _copy_table(reading: Connection, writing: Connection, table: Table) -> int:
    count = 0
    for part in reading.execute(select(table).order_by(*table.primary_key)).partitions(_BATCH):
        writing.execute(insert(table), [dict(row._mapping) for row in part])
        count += len(part)
    return count


def _require_same(reading: Connection, writing: Connection, played: Replay) -> None:
    """Read back what was written: the same rows, and a history that leads to the same state."""
    again = replay(writing)
    _require_sound(again, "the copy")
    differing = [table.name for table in COPIED if _digest(reading, table) != _digest(writing, table)]
    if differing or again != played:
        raise Refused(
            f"the other database does not give back what it was given: {', '.join(differing) or 'routes'}",
            hint="nothing was copied; check its encoding (UTF-8)",
        )


def _digest(connection: Connection, table: Table) -> str:
    """Over all rows, in whatever order: databases sort text differently."""
    columns: Sequence[str] = [column.name for column in table.columns]
    rows = connection.execute(select(table))
    return sha256_json(sorted(sha256_json([row._mapping[name] for name in columns]) for row in rows))


def _last_feedback_id(connection: Connection) -> int:
    """The highest id that was ever given out: those of rejected texts never come to mean another one."""
    if connection.dialect.name == "sqlite":
        query = "SELECT seq FROM sqlite_sequence WHERE name = 'feedback'"
    else:
        query = "SELECT last_value FROM feedback_id_seq WHERE is_called"
    return int(connection.execute(text(query)).scalar() or 0)


def _set_next_feedback_id(connection: Connection, last: int) -> None:
    if not last:
        return
    if connection.dialect.name == "sqlite":
        connection.execute(text("DELETE FROM sqlite_sequence WHERE name = 'feedback'"))
        connection.execute(text("INSERT INTO sqlite_sequence (name, seq) VALUES ('feedback', :last)"), {"last": last})
    else:
        connection.execute(select(func.setval("feedback_id_seq", last)))
