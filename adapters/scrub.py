"""After text was deleted: make the database's files forget its bytes too."""

from __future__ import annotations

from sqlalchemy import Table, text
from sqlalchemy.exc import OperationalError

from .errors import RegistryUnavailable
from .journal import Journal, usable

LOCK_SECONDS = 5


def scrub(journal: Journal, *tables: Table) -> None:
    """SQLite overwrites deleted rows (`secure_delete`), but old pages wait in its log until that is cut. PostgreSQL
    keeps deleted rows in the table's file until `tables` are written anew; its write-ahead log and backups are its
    administrator's.

    Raises `RegistryUnavailable` where a reader is in the way: the rows are deleted all the same.
    """
    if journal.engine.dialect.name == "sqlite":
        _cut_log(journal)
    elif journal.engine.dialect.name == "postgresql":
        _rewrite(journal, tables)


def _cut_log(journal: Journal) -> None:
    with usable(), journal.engine.connect() as connection:
        busy = connection.connection.cursor().execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
    if busy:
        raise RegistryUnavailable(
            "the text is deleted, but the database's log still holds its bytes: another process keeps reading it",
            hint="end that reader (a backup, a shell) and run the command again",
        )


def _rewrite(journal: Journal, tables: tuple[Table, ...]) -> None:
    engine = journal.engine.execution_options(isolation_level="AUTOCOMMIT")
    with usable(), engine.connect() as connection:
        connection.execute(text(f"SET lock_timeout = '{LOCK_SECONDS}s'"))
        try:
            for table in tables:
                connection.execute(text(f"VACUUM (FULL) {table.name}"))
        except OperationalError as error:
            raise RegistryUnavailable(
                "the text is deleted, but the database's files still hold its bytes: the table is in use",
                hint="end what reads it (a backup, a shell) and run the command again",
            ) from error
        finally:
            connection.execute(text("RESET lock_timeout"))
