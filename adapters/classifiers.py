"""Classifier versions in the registry: published, promoted and rolled back like an adapter's."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import insert, select

from . import schema
from .errors import NotFound, Refused
from .journal import Journal, read_classifier
from .records import classifier_from_row
from .store import Store
from .types import ClassifierVersion, Event, Json


def publish_classifier(
    journal: Journal, store: Store, folder: Path, *, digest: str, summary: Json
) -> ClassifierVersion:
    """Store a classifier folder (flat, plain files) under the digest it carries and give it the next number.

    The same digest again returns the version it has. Loading verifies the files against the digest.
    """
    with store.staged(folder, sorted(file.name for file in folder.iterdir())) as staged:
        store.publish_classifier(staged, digest)
    table = schema.classifiers
    with journal.transaction() as connection:
        row = connection.execute(select(table).where(table.c.digest == digest)).first()
        if row is not None:
            return classifier_from_row(row)
        number = read_classifier(connection).latest + 1
        event = journal.append_classifier(connection, "classifier_published", number, payload={"digest": digest})
        version = ClassifierVersion(number, digest, dict(summary), event.time)
        connection.execute(
            insert(table).values(number=number, digest=digest, published_at=event.time, summary=dict(summary))
        )
        return version


def promote_classifier(journal: Journal, number: int, *, why: str | None = None) -> Event:
    """Make a published classifier the one in use."""
    with journal.transaction() as connection:
        state = read_classifier(connection)
        if not 1 <= number <= state.latest:
            raise NotFound(f"no classifier {number}", hint="see `branchline classifier list`")
        if number == state.live:
            raise Refused(f"classifier {number} is live already", hint="see `branchline classifier list`")
        return journal.append_classifier(connection, "classifier_promoted", number, why=why, payload={})


def rollback_classifier(journal: Journal, *, why: str | None = None) -> Event:
    """Go back to the classifier that was in use before."""
    with journal.transaction() as connection:
        state = read_classifier(connection)
        if len(state.stack) < 2:
            raise Refused("there is no earlier classifier to go back to", hint="promote another one instead")
        target = state.stack[-2]
        return journal.append_classifier(
            connection, "classifier_rolled_back", target, why=why, payload={"from": state.live}
        )


def live_classifier(journal: Journal) -> ClassifierVersion | None:
    """The classifier that is wanted in force, `None` before the first promotion."""
    table = schema.classifiers
    with journal.reading() as connection:
        live = read_classifier(connection).live
        row = connection.execute(select(table).where(table.c.number == live)).first()
        return None if row is None else classifier_from_row(row)
