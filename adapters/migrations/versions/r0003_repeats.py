"""What was done for a client's Idempotency-Key, so that asking again does it once."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the table of requests that are done once."""
    op.create_table(
        "repeats",
        sa.Column("principal", sa.String(64), primary_key=True),
        sa.Column("key", sa.String(200), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("token", sa.String(32), nullable=False),
        sa.Column("time", sa.Float, nullable=False),
        sa.Column("serial", sa.Integer),
        sa.Column("answer", sa.Text),
        if_not_exists=True,
    )
    op.create_index("ix_repeats_time", "repeats", ["time"], if_not_exists=True)
