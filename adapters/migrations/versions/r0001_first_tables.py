"""The tables of schema 1, and those that came later without a revision: made where they are missing."""

from __future__ import annotations

from collections.abc import Mapping

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXTS = ("corrections", "examples", "feedback")


def upgrade() -> None:
    """Make what is missing; a registry written before there were revisions keeps every row."""
    _control()
    _routes()
    _texts()
    _classifiers()
    for table, column in (
        ("events", "route"),
        ("evidence", "route"),
        ("corrections", "label"),
        ("feedback", "source"),
    ):
        op.create_index(f"ix_{table}_{column}", table, [column], if_not_exists=True)
    state: sa.ColumnElement[object] = sa.literal('{"latest": 0, "stack": []}')
    if op.get_context().dialect.name == "postgresql":
        state = sa.cast(state, sa.JSON)
        for table in TEXTS:  # its statistics would keep copies of texts
            op.execute(f"ALTER TABLE {table} ALTER COLUMN text SET STATISTICS 0")
    _fill("registry", {"id": sa.literal(1), "schema": sa.literal(1), "serial": sa.literal(0)})
    _fill("classifier", {"id": sa.literal(1), "state": state})


def _control() -> None:
    _create(
        "registry",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("schema", sa.Integer, nullable=False),
        sa.Column("serial", sa.Integer, nullable=False),
    )
    _create(
        "events",
        sa.Column("serial", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("time", sa.String(32), nullable=False),
        sa.Column("kind", sa.String(32), nullable=False),
        sa.Column("route", sa.String(63)),
        sa.Column("number", sa.Integer),
        sa.Column("actor", sa.String(200), nullable=False),
        sa.Column("why", sa.Text),
        sa.Column("payload", sa.JSON, nullable=False),
    )
    _create(
        "gateways",
        sa.Column("gateway_id", sa.String(64), primary_key=True),
        sa.Column("last_seen", sa.Float, nullable=False),
        sa.Column("serial", sa.Integer, nullable=False),
        sa.Column("document", sa.JSON, nullable=False),
    )


def _routes() -> None:
    _create(
        "routes",
        sa.Column("name", sa.String(63), primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("state", sa.JSON, nullable=False),
    )
    _create(
        "versions",
        sa.Column("route", sa.String(63), sa.ForeignKey("routes.name"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("published_at", sa.String(32), nullable=False),
        sa.Column("manifest", sa.JSON, nullable=False),
        sa.UniqueConstraint("route", "digest"),
    )
    _create(
        "evidence",
        sa.Column("serial", sa.Integer, sa.ForeignKey("events.serial"), primary_key=True, autoincrement=False),
        sa.Column("route", sa.String(63), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
    )


def _texts() -> None:
    _create(
        "examples",
        sa.Column("route", sa.String(63), sa.ForeignKey("routes.name"), primary_key=True),
        sa.Column("text_digest", sa.String(64), primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
    )
    _create(
        "corrections",
        sa.Column("text_digest", sa.String(64), primary_key=True),
        sa.Column("label", sa.String(63), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
        sa.Column("serial", sa.Integer, nullable=False),
    )
    _create(
        "feedback",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("label", sa.String(63), nullable=False),
        sa.Column("text_digest", sa.String(64), nullable=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("source", sa.String(200), nullable=False),
        sa.Column("time", sa.String(32), nullable=False),
        sa.Column("times", sa.Integer, nullable=False),
        sa.UniqueConstraint("label", "text_digest"),
        sqlite_autoincrement=True,
    )


def _classifiers() -> None:
    _create(
        "classifiers",
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("digest", sa.String(64), nullable=False, unique=True),
        sa.Column("published_at", sa.String(32), nullable=False),
        sa.Column("summary", sa.JSON, nullable=False),
    )
    _create(
        "classifier",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("state", sa.JSON, nullable=False),
    )


def _create(name: str, *columns: sa.schema.SchemaItem, **options: bool) -> None:
    op.create_table(name, *columns, if_not_exists=True, **options)


def _fill(name: str, row: Mapping[str, sa.ColumnElement[object]]) -> None:
    """Insert the one row of a table that has none."""
    table = sa.table(name, *(sa.column(column) for column in row))
    empty = ~sa.exists(sa.select(sa.literal_column("1")).select_from(table))
    op.execute(sa.insert(table).from_select(list(row), sa.select(*row.values()).where(empty)))
