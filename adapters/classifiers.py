"""Classifier versions in the registry: published, promoted and rolled back like an adapter's."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, insert, select

from . import schema
from .classifier_evidence import ClassifierEvidence
from .errors import Conflict, NotFound, Refused
from .journal import Journal
from .records import classifier_from_row
from .store import Store
from .types import ClassifierState, ClassifierVersion, Event, Json
from .view import read_classifier


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


def promote_classifier(
    journal: Journal,
    number: int,
    *,
    why: str | None = None,
    gate: Json | None = None,
    expected: ClassifierState | None = None,
) -> Event:
    """Make a published classifier the one in use. The gate is the caller's (`classifier_promotion`), and recorded.

    Raises `Conflict` where another classifier is live than in the state that was judged (`expected`).
    """
    with journal.transaction() as connection:
        state = read_classifier(connection)
        if not 1 <= number <= state.latest:
            raise _unknown(number)
        if number == state.live:
            raise Refused(f"classifier {number} is live already", hint="see `branchline classifier list`")
        if expected is not None and expected.live != state.live:
            raise Conflict(f"classifier {state.live} went live meanwhile", hint="judge again, against that one")
        payload = {"gate": dict(gate)} if gate else {}
        return journal.append_classifier(connection, "classifier_promoted", number, why=why, payload=payload)


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


def classifier_version(journal: Journal, number: int) -> ClassifierVersion:
    """Raises `NotFound`."""
    table = schema.classifiers
    with journal.reading() as connection:
        row = connection.execute(select(table).where(table.c.number == number)).first()
    if row is None:
        raise _unknown(number)
    return classifier_from_row(row)


def add_classifier_evidence(
    journal: Journal, store: Store, version: ClassifierVersion, evidence: ClassifierEvidence
) -> str:
    """File evidence about a classifier and say so in the history; what is filed already changes nothing: filed again
    it would pass for newer than what came after it.

    Returns the evidence's digest. Raises `Refused` for evidence about another classifier.
    """
    if evidence.classifier_digest != version.digest:
        raise Refused(
            f"this evidence speaks of classifier {evidence.classifier_digest[:16]}, "
            f"number {version.number} is {version.digest[:16]}",
            hint="evaluate this classifier",
        )
    digest = store.put_classifier_evidence(evidence)
    with journal.transaction() as connection:
        if digest not in _evidence_digests(connection, version.number):
            payload = {"digest": digest}
            journal.append_classifier(connection, "classifier_evidence_added", version.number, payload=payload)
    return digest


def classifier_evidence(journal: Journal, store: Store, version: ClassifierVersion) -> list[ClassifierEvidence]:
    """A classifier's evidence, oldest first, each verified against its digest."""
    with journal.reading() as connection:
        digests = _evidence_digests(connection, version.number)
    return [store.classifier_evidence(digest) for digest in digests]


def _evidence_digests(connection: Connection, number: int) -> list[str]:
    table = schema.events
    mine = (table.c.kind == "classifier_evidence_added") & (table.c.number == number)
    query = select(table.c.payload).where(mine).order_by(table.c.serial)
    return [str(payload["digest"]) for payload in connection.execute(query).scalars()]


def _unknown(number: int) -> NotFound:
    return NotFound(f"no classifier {number}", hint="see `branchline classifier list`")
