"""Bytes on disk: private folders, and writes that survive a power cut."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from .errors import BadInput


def make_folder(path: Path) -> None:
    """Make `path` and its missing parents, each for its owner alone (0700), names synced to disk."""
    missing: list[Path] = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)
        sync(folder.parent)


def copy_file(source: Path, target: Path) -> None:
    """Copy a regular file; raises `BadInput` for anything else, also where it became that since it was looked at."""
    descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not hold us up
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BadInput(f"{source.name} is not a regular file", hint="copy the file itself into the folder")
        with os.fdopen(descriptor, "rb", closefd=False) as reader, target.open("xb") as writer:
            shutil.copyfileobj(reader, writer, 1024 * 1024)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `path` aside and move it into place: a reader sees the old bytes or the new ones."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".new-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """fsync a file or a folder, so that its bytes or its names survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
