"""A registry as the code before the first revision wrote it: 29 events of every kind there was, on either database."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlalchemy import create_engine

_FOLDER = Path(__file__).parent


def write_first_registry(url: str) -> None:
    """Fill the empty database at `url`."""
    kind = url.partition("+")[0].partition(":")[0]
    script = (_FOLDER / f"registry_schema_1.{kind}.sql").read_text(encoding="utf-8")
    if kind == "sqlite":
        raw = sqlite3.connect(url.removeprefix("sqlite:///"))
        raw.executescript(script)
        raw.close()
        return
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(script)
    engine.dispose()
