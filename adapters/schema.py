"""The registry's tables, in SQLAlchemy Core that SQLite and PostgreSQL both run.

`events` is the truth; `routes` and `classifier` are folds of it, written in the event's own transaction.
`versions`, `evidence` and `classifiers` are immutable rows an event points to; `examples`, `corrections` and
`feedback` hold text outside the event log, so that forgetting truly deletes it; `keys` hold what tells an API key,
never the key; `gateways` are heartbeats; `repeats` are answers to requests that are done once, for a day. What changes
here needs a revision in `migrations`.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Column,
    Float,
    ForeignKey,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

SCHEMA_NUMBER = 1  # what older code must understand to use the registry; see `migrations`
REVISION = "0003"  # the newest in `migrations`; known here so that Alembic is imported only to upgrade
REVISION_TABLE = "registry_revision"  # not Alembic's own name for it: a database may be shared

metadata = MetaData()
registry = Table(
    "registry",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("schema", Integer, nullable=False),
    Column("serial", Integer, nullable=False),
)
events = Table(
    "events",
    metadata,
    Column("serial", Integer, primary_key=True, autoincrement=False),
    Column("time", String(32), nullable=False),
    Column("kind", String(32), nullable=False),
    Column("route", String(63), index=True),
    Column("number", Integer),
    Column("actor", String(200), nullable=False),
    Column("why", Text),
    Column("payload", JSON, nullable=False),
)
routes = Table(
    "routes",
    metadata,
    Column("name", String(63), primary_key=True),
    Column("revision", Integer, nullable=False),
    Column("state", JSON, nullable=False),
)
versions = Table(
    "versions",
    metadata,
    Column("route", String(63), ForeignKey("routes.name"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("published_at", String(32), nullable=False),
    Column("manifest", JSON, nullable=False),
    UniqueConstraint("route", "digest"),
)
evidence = Table(
    "evidence",
    metadata,
    Column("serial", Integer, ForeignKey("events.serial"), primary_key=True, autoincrement=False),
    Column("route", String(63), nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("digest", String(64), nullable=False),
)
examples = Table(
    "examples",
    metadata,
    Column("route", String(63), ForeignKey("routes.name"), primary_key=True),
    Column("text_digest", String(64), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("text", Text, nullable=False),
    Column("source", String(200), nullable=False),
)
corrections = Table(
    "corrections",
    metadata,
    Column("text_digest", String(64), primary_key=True),
    Column("label", String(63), nullable=False, index=True),
    Column("text", Text, nullable=False),
    Column("source", String(200), nullable=False),
    Column("time", String(32), nullable=False),
    Column("serial", Integer, nullable=False),
)
feedback = Table(
    "feedback",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("label", String(63), nullable=False),
    Column("text_digest", String(64), nullable=False),
    Column("text", Text, nullable=False),
    Column("source", String(200), nullable=False, index=True),
    Column("time", String(32), nullable=False),
    Column("times", Integer, nullable=False),
    UniqueConstraint("label", "text_digest"),
    sqlite_autoincrement=True,  # an id that was accepted or rejected never comes to mean another text
)
classifiers = Table(
    "classifiers",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False, unique=True),
    Column("published_at", String(32), nullable=False),
    Column("summary", JSON, nullable=False),
)
classifier = Table(
    "classifier",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("state", JSON, nullable=False),
)
keys = Table(
    "keys",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("role", String(16), nullable=False),
    Column("digest", String(64), nullable=False, unique=True),  # sha256 of the secret, which is kept nowhere
    Column("routes", JSON(none_as_null=True)),  # NULL: all routes
    Column("limits", JSON, nullable=False),
    Column("created_at", String(32), nullable=False),
    Column("revoked_at", String(32)),
)
gateways = Table(
    "gateways",
    metadata,
    Column("gateway_id", String(64), primary_key=True),
    Column("last_seen", Float, nullable=False),
    Column("serial", Integer, nullable=False),
    Column("document", JSON, nullable=False),
)
repeats = Table(
    "repeats",
    metadata,
    Column("principal", String(64), primary_key=True),
    Column("key", String(200), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("token", String(32), nullable=False),
    Column("time", Float, nullable=False, index=True),
    Column("serial", Integer),  # of the last event that was written for it, NULL before there was one
    Column("answer", Text),  # NULL while it is being done
)
revisions = Table(REVISION_TABLE, metadata, Column("version_num", String(32), primary_key=True))
