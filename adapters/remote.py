"""Artifacts on a remote file system: any fsspec URL (s3://, gs://, file://, memory://).

An object store has no rename: the manifest, written last, *is* the publication. What is fetched lands in the local
store, which verifies it by digest before anything uses it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import RegistryUnavailable

MANIFEST_FILE = "manifest.json"
# They have no folders; asked to make one, some clients would make the bucket of a mistyped URL.
_OBJECT_STORES = frozenset({"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "oci"})


class Remote:
    """A folder tree under an fsspec URL. Methods raise `RegistryUnavailable` where it cannot be reached."""

    def __init__(self, url: str) -> None:
        self.url = url
        with _reached(url):
            from fsspec.core import url_to_fs

            fs, root = url_to_fs(url)
        self._fs: Any = fs  # fsspec ships no types
        self._root: str = root

    def push(self, folder: Path, key: str) -> None:
        """Copy a published folder, its manifest last; where the same is there already, it is written over."""
        names = sorted(file.name for file in folder.iterdir() if file.name != MANIFEST_FILE)
        with _reached(self.url):
            self._make_folder(self._path(key))
            for name in [*names, MANIFEST_FILE]:
                self._fs.put_file(str(folder / name), self._path(key, name))

    def pull(self, key: str, target: Path) -> bool:
        """Copy a published folder into `target`, which exists and is empty; false where none is published."""
        with _reached(self.url):
            self._fs.invalidate_cache()  # a listing kept from before would hide what was mended since
            if not self._fs.exists(self._path(key, MANIFEST_FILE)):
                return False
            for path in self._fs.ls(self._path(key), detail=False):
                name = str(path).rstrip("/").rpartition("/")[2]
                if not name.startswith("."):
                    self._fs.get_file(path, str(target / name))
        return True

    def folders(self, key: str) -> list[str]:
        """The names directly below `key`, as the remote store has them now; none where there is no such key."""
        with _reached(self.url):
            self._fs.invalidate_cache()  # a listing kept from before a publication would hide it
            try:
                found = self._fs.ls(self._path(key), detail=False)
            except FileNotFoundError:
                return []
            return [str(path).rstrip("/").rpartition("/")[2] for path in found]

    def put(self, content: bytes, key: str) -> None:
        """Write one object."""
        with _reached(self.url):
            self._make_folder(self._path(key).rpartition("/")[0])
            self._fs.pipe_file(self._path(key), content)

    def get(self, key: str) -> bytes | None:
        """Read one object, `None` where there is none."""
        with _reached(self.url):
            return bytes(self._fs.cat_file(self._path(key))) if self._fs.exists(self._path(key)) else None

    def _make_folder(self, path: str) -> None:
        if self.url.partition("://")[0] not in _OBJECT_STORES:
            self._fs.makedirs(path, exist_ok=True)

    def _path(self, *parts: str) -> str:
        return "/".join([self._root.rstrip("/"), *parts])


@contextlib.contextmanager
def _reached(url: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # clients of object stores raise errors of trees of their own
        scheme = url.partition("://")[0]
        raise RegistryUnavailable(  # clients may see the message: what it says of buckets and hosts is in the hint
            f"the store at {scheme}:// cannot be used",
            hint=f"{error!s:.200}; check --store, its credentials and `pip install 'branchline[remote]'`",
        ) from error
