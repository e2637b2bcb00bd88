"""The registry's schema from one revision to the next, by Alembic; imported only where there is something to do.

A revision only adds: code one revision older goes on reading and writing while a fleet is being upgraded. One that
must take something away raises the number in `registry.schema` too, which older code refuses.
"""

from __future__ import annotations

import io
from contextlib import redirect_stdout
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Connection

from adapters.errors import RegistryUnavailable

FOLDER = Path(__file__).parent


def upgrade(connection: Connection) -> None:
    """Bring the tables to the newest revision inside the connection's own transaction, which the caller commits.

    Raises `RegistryUnavailable` for a registry that says it has a revision that there never was.
    """
    configured = _config()
    configured.attributes["connection"] = connection
    try:
        command.upgrade(configured, "head")
    except CommandError as error:
        raise RegistryUnavailable(
            f"cannot upgrade the registry: {error}", hint="restore the registry from a backup"
        ) from error


def render_sql(url: str, revision: str | None) -> str:
    """The statements that lead from `revision` (`None`: from an empty database) to the newest, for an administrator."""
    configured, written = _config(), io.StringIO()
    configured.attributes["url"] = url
    with redirect_stdout(written):
        command.upgrade(configured, f"{revision or 'base'}:head", sql=True)
    return written.getvalue()


def _config() -> Config:
    configured = Config()
    configured.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    return configured
