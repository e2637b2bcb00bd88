"""An engine's private copies of adapter versions: verified, read-only, and kept for as long as the engine lives.

vLLM reads an adapter's folder again after each eviction and asks nobody; what it was given must stay as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from ..check import FILES
from ..errors import BadInput, StoreCorrupted
from ..files import copy_file, make_folder
from ..rows import sha256_file
from ..store import Store
from ..types import Manifest

_ENGINE = "engine-"


def copies_root(parent: Path | None) -> Path:
    """Where this user's engines keep their copies: below `parent`, or below the system's temporary folder."""
    return (parent or Path(tempfile.gettempdir())) / f"branchline-engine-{os.getuid()}"


def make_root(root: Path) -> None:
    """Make the folder; raises `BadInput` where another user or a link is there, as anybody can in a temporary place."""
    make_folder(root)
    found = root.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise BadInput(f"{root} is not a folder of this user", hint="set BRANCHLINE_ENGINE_COPIES to another place")
    root.chmod(0o700)


class Copies:
    """One engine's folder of copies, by digest. Safe for threads; nothing is touched before the first `take`.

    The folder is locked (flock) by this process. The next engine to start removes the folders that nobody holds;
    systemd's tmpfiles spares locked ones too.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._held: int | None = None  # the descriptor that holds the folder's lock, open until the process ends

    def __len__(self) -> int:
        return 0 if self._folder is None else sum(1 for _ in self._folder.glob("[0-9a-f]*"))

    def take(self, store: Store, route: str, manifest: Manifest) -> Path:
        """The folder with our copy of a version's two files, whose bytes are what the manifest says.

        Blocks while it copies and hashes. A copy that is there is hashed again, and mended where it was altered.
        Raises `StoreCorrupted` for stored bytes that differ, `OSError` where nothing can be written.
        """
        target = self._claimed() / manifest.digest
        if target.exists() and not _faults(target, manifest):
            return target
        if store.remote is not None:
            store.verify(route, manifest.digest)  # fetches again what was damaged in the cache
        with self._copied(store.folder(route, manifest.digest), manifest) as aside, self._lock:
            _place(aside, target)
        return target

    @contextlib.contextmanager
    def _copied(self, source: Path, manifest: Manifest) -> Iterator[Path]:
        """A verified copy under a name of its own, removed on the way out where it is still there."""
        aside = Path(tempfile.mkdtemp(prefix=".new-", dir=self._claimed()))
        try:
            for name in FILES:
                with contextlib.suppress(FileNotFoundError):  # `_faults` names every one that is missing
                    copy_file(source / name, aside / name)
                    (aside / name).chmod(0o400)
            if faults := _faults(aside, manifest):
                raise StoreCorrupted(f"stored files are not the published ones: {'; '.join(faults)}", hint=_MEND)
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _claimed(self) -> Path:
        with self._lock:
            if self._folder is None:
                self._folder, self._held = _claim(self._root)
            return self._folder


_MEND = "publish the same folder again"


def _faults(folder: Path, manifest: Manifest) -> list[str]:
    faults = []
    for name in FILES:
        try:
            if sha256_file(folder / name) != manifest.files.get(name):
                faults.append(f"{name} was altered")
        except FileNotFoundError:
            faults.append(f"{name} is missing")
    return faults


def _place(aside: Path, target: Path) -> None:
    """Move a verified copy to its place; where one is there already, its files are replaced one by one."""
    if target.exists():
        target.chmod(0o700)
        for name in FILES:
            (aside / name).replace(target / name)
    else:
        aside.rename(target)
    target.chmod(0o500)


def _claim(root: Path) -> tuple[Path, int]:
    """A new folder that this process holds; those of engines that are dead are removed."""
    make_root(root)
    with _locked(root):  # so that nobody sees a folder between its making and its lock
        for folder in root.glob(f"{_ENGINE}*"):
            _remove_dead(folder)
        folder = Path(tempfile.mkdtemp(prefix=_ENGINE, dir=root))
        return folder, _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _remove_dead(folder: Path) -> None:
    try:
        descriptor = _lock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return  # its engine lives
    try:
        for copy in folder.iterdir():
            copy.chmod(0o700)
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = _lock(folder, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock(folder: Path, how: int) -> int:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, how)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
