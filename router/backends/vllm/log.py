"""An engine's whole output in a file of limited size, one older file beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

MAX_BYTES = 16 * 1024 * 1024


class EngineLog:
    """Appends lines to `path` (0600); where it grows over `max_bytes`, it becomes `path` + ".1". Never raises.

    Without a path, or where the file cannot be written, lines go nowhere: an engine runs without its log.
    """

    def __init__(self, path: Path | None, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file: BinaryIO | None = None
        self._size = 0

    def rotate(self) -> None:
        """Begin a new file; the present one becomes the older one."""
        self.close()
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if self._path.exists():
                self._path.replace(self._path.with_name(self._path.name + ".1"))
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            self._file, self._size = os.fdopen(descriptor, "wb", buffering=0), 0
        except OSError:
            self._file = None

    def write(self, line: str) -> None:
        if self._file is None:
            return
        data = line.encode(errors="replace") + b"\n"
        try:
            self._file.write(data)
        except OSError:
            self.close()
            return
        self._size += len(data)
        if self._size > self._max_bytes:
            self.rotate()

    def close(self) -> None:
        """Idempotent."""
        if self._file is not None:
            self._file.close()
            self._file = None
