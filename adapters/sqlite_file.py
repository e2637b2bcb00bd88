"""The file of a SQLite registry: one that is moved away, or replaced by another, is not written to unseen for ever."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

from .errors import RegistryUnavailable

_KEY = "branchline_file"


class WatchedFile:
    """Connections of an engine are used only as long as their file is the one at `path`.

    SQLite itself goes on with the file that it has opened, wherever that is. Where there is none at `path` any more,
    whoever wants a connection gets `RegistryUnavailable`, and no empty one is made; where there is another, connections
    to that one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._was_there = False

    def attach(self, engine: Engine) -> None:
        event.listen(engine, "do_connect", self._before_connect)
        event.listen(engine, "connect", self._connected)
        event.listen(engine, "checkout", self._checked_out)

    def _before_connect(self, *_: object) -> None:
        if self._was_there:
            self._identity()

    def _connected(self, _connection: object, record: object) -> None:
        info: dict[str, object] = record.info  # type: ignore[attr-defined]  # SQLAlchemy's ConnectionPoolEntry
        info[_KEY] = self._identity()
        self._was_there = True

    def _checked_out(self, _connection: object, record: object, _proxy: object) -> None:
        if record.info[_KEY] != self._identity():  # type: ignore[attr-defined]
            raise DisconnectionError("another file is in the registry's place")

    def _identity(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise RegistryUnavailable(
                f"the registry's file is gone: {error.strerror}", hint="move it back, with the files beside it"
            ) from error
        return found.st_dev, found.st_ino
