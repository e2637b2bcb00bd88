"""Version folders by full digest: `store/<route>/<digest>/`, written aside, fsynced, manifest last, renamed.

A folder without a manifest does not exist. Files are read-only once published and never rewritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from .check import FILES
from .classifier_evidence import ClassifierEvidence, parse_classifier_evidence
from .errors import BadInput, NotFound, StoreCorrupted
from .evidence import Evidence, parse_evidence
from .files import copy_file, make_folder, sync, write_atomically
from .manifests import manifest_bytes, parse_manifest
from .remote import MANIFEST_FILE, Remote
from .rows import sha256_file
from .types import AdapterVersion, Manifest, RouteName, parse_route_name

_STAGING = ".staging"
_CLASSIFIER = "classifier"
_ENCODERS = f"{_CLASSIFIER}/encoders"
_ABANDONED_SECONDS = 24 * 3600.0
_HEX = frozenset("0123456789abcdef")


class Store:
    """Artifacts on a local file system. Safe for many processes: publication is a rename.

    With a `remote`, the local file system is its verified cache: what is published goes there too, and what is asked
    for and not here is fetched from there.
    """

    def __init__(self, root: Path, remote: Remote | None = None) -> None:
        self.root = root
        self.remote = remote

    @contextlib.contextmanager
    def staged(self, source: Path, names: Sequence[str] = FILES) -> Iterator[Path]:
        """A private copy of `names` from `source`, to be checked and then published; removed on the way out."""
        staging = self.root / _STAGING
        make_folder(staging)
        _remove_abandoned(staging)
        aside = Path(tempfile.mkdtemp(dir=staging))
        try:
            for name in names:
                copy_file(source / name, aside / name)
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def publish(self, route: RouteName, staged: Path, manifest: Manifest) -> Path:
        """Move a staged folder to its place; where one lies there already, what differs in it is mended."""
        return self._place(self.folder(route, manifest.digest), staged, manifest_bytes(manifest))

    def folder(self, route: str, digest: str) -> Path:
        """Where a version's files lie, published or not."""
        _require_digest(digest)
        return self.root / parse_route_name(route) / digest

    def find(self, route: str, digest16: str) -> str:
        """The digest of the one published version of `route` that begins with `digest16`, as in engine names.

        Raises `NotFound`, and `StoreCorrupted` where several do: which one is meant cannot be known.
        """
        if len(digest16) != 16 or not set(digest16) <= _HEX:
            raise BadInput(f"{digest16!r:.80} is not the beginning of a digest", hint="give 16 hex digits")
        home = self.root / parse_route_name(route)
        names = [path.name for path in home.glob(f"{digest16}*") if (path / MANIFEST_FILE).exists()]
        if not names and self.remote is not None:
            names = self.remote.folders(route)
        found = [name for name in names if name.startswith(digest16) and _is_digest(name)]
        if not found:
            raise NotFound(f"no stored version {route}/{digest16}", hint="publish it again")
        if len(found) > 1:
            raise StoreCorrupted(
                f"{len(found)} stored versions begin with {route}/{digest16}", hint="retire all but one"
            )
        return found[0]

    def manifest(self, route: str, digest: str) -> Manifest:
        """The manifest of a published version; raises `NotFound`, or `StoreCorrupted` where it cannot be read."""
        folder = self.folder(route, digest)
        self._fetch(folder)
        try:
            return _read_manifest(folder, route)
        except StoreCorrupted:
            if self.remote is None:
                raise
        self._fetch(folder, again=True)
        return _read_manifest(folder, route)

    def verify(self, route: str, digest: str) -> Manifest:
        """Hash a version's files against its manifest and its digest; raises `StoreCorrupted` naming what differs."""
        faults = self._faults(route, digest)
        if faults and self.remote is not None:
            self._fetch(self.folder(route, digest), again=True)
            faults = self._faults(route, digest)
        if faults:
            raise StoreCorrupted(f"{route}/{digest[:16]}: {'; '.join(faults)}", hint=_MEND)
        return self.manifest(route, digest)

    def _faults(self, route: str, digest: str) -> list[str]:
        files, folder = self.manifest(route, digest).files, self.folder(route, digest)
        return [fault for name in files if (fault := _file_fault(folder / name, files[name]))]

    def verify_version(self, version: AdapterVersion) -> None:
        """`verify`, and that the stored manifest says of the bytes what the registry says."""
        if manifest_bytes(self.verify(version.route, version.digest)) != manifest_bytes(version.manifest):
            raise StoreCorrupted(f"{version.ref}: the stored manifest differs from the registry's", hint=_MEND)

    def put_evidence(self, route: RouteName, evidence: Evidence) -> str:
        """File evidence under its own digest and return that; raises `BadInput` for what could not be read back."""
        content = evidence.to_json().encode()
        parse_evidence(content)
        return self._put_document(self.root / parse_route_name(route), content)

    def evidence(self, route: str, digest: str) -> Evidence:
        """Evidence by digest, verified."""
        return parse_evidence(self._document(self.root / parse_route_name(route), digest, route))

    def put_classifier_evidence(self, evidence: ClassifierEvidence) -> str:
        """As `put_evidence`, about a classifier."""
        content = evidence.to_json().encode()
        parse_classifier_evidence(content)
        return self._put_document(self.root / _CLASSIFIER, content)

    def classifier_evidence(self, digest: str) -> ClassifierEvidence:
        """Evidence about a classifier by digest, verified."""
        return parse_classifier_evidence(self._document(self.root / _CLASSIFIER, digest, "the classifier"))

    def publish_classifier(self, staged: Path, digest: str) -> Path:
        """Place a staged classifier folder under the digest it carries; its own loader verifies it against that."""
        return self._place_listed(_CLASSIFIER, digest, staged)

    def classifier_folder(self, digest: str) -> Path:
        """Where a published classifier lies; raises `NotFound`."""
        folder = self._listed(_CLASSIFIER, digest)
        if folder is None:
            raise NotFound(f"no stored classifier {digest[:16]}", hint="fit and publish it again")
        return folder

    def publish_encoder(self, staged: Path, digest: str) -> Path:
        """Place a staged folder that holds an encoder under the encoder's digest; who opens it verifies it."""
        return self._place_listed(_ENCODERS, digest, staged)

    def encoder_folder(self, digest: str, *, again: bool = False) -> Path | None:
        """Where a published encoder lies, `None` where there is none; `again`: what lies here is not intact."""
        return self._listed(_ENCODERS, digest, again=again)

    def _listed(self, kind: str, digest: str, *, again: bool = False) -> Path | None:
        folder = self._path(kind, digest)
        self._fetch(folder, again=again)
        return folder if (folder / MANIFEST_FILE).exists() else None

    def _path(self, kind: str, digest: str) -> Path:
        _require_digest(digest)
        return self.root / kind / digest

    def _place_listed(self, kind: str, digest: str, staged: Path) -> Path:
        manifest = {"digest": digest, "files": sorted(file.name for file in staged.iterdir())}
        return self._place(self._path(kind, digest), staged, json.dumps(manifest, sort_keys=True).encode())

    def _put_document(self, home: Path, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        path = home / "evidence" / f"{digest}.json"
        make_folder(path.parent)
        if not path.exists() or sha256_file(path) != digest:
            write_atomically(path, content)
        if self.remote is not None:
            self.remote.put(content, self._key(path))
        return digest

    def _document(self, home: Path, digest: str, whose: str) -> bytes:
        _require_digest(digest)
        path = home / "evidence" / f"{digest}.json"
        if self.remote is not None and not path.exists() and (found := self.remote.get(self._key(path))) is not None:
            make_folder(path.parent)
            write_atomically(path, found)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"no stored evidence {digest[:16]} for {whose}", hint="attach it again") from None
        if hashlib.sha256(raw).hexdigest() != digest:
            raise StoreCorrupted(f"evidence {digest[:16]} of {whose} was altered", hint="attach it again")
        return raw

    def _place(self, target: Path, staged: Path, manifest: bytes) -> Path:
        make_folder(target.parent)
        (staged / MANIFEST_FILE).write_bytes(manifest)
        self._settle(target, staged)
        if self.remote is not None:
            self.remote.push(target, self._key(target))
        return target

    def _fetch(self, target: Path, *, again: bool = False) -> None:
        """Bring a folder from the remote store where it is not here, or `again` where it is not intact."""
        if self.remote is None or ((target / MANIFEST_FILE).exists() and not again):
            return
        with self.staged(target, ()) as staged:
            if self.remote.pull(self._key(target), staged):
                make_folder(target.parent)
                self._settle(target, staged)

    def _key(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    @staticmethod
    def _settle(target: Path, staged: Path) -> None:
        """Rename a complete folder to its place, or mend what differs in the one that is there."""
        names = sorted((file.name for file in staged.iterdir()), key=lambda name: name == MANIFEST_FILE)
        for file in staged.iterdir():
            file.chmod(0o400)
            sync(file)
        sync(staged)
        try:
            staged.rename(target)
        except OSError:
            if not target.is_dir():
                raise
            _mend(target, staged, names)
        sync(target.parent)


_MEND = "publish the same folder again, or retire the version"


def _read_manifest(folder: Path, route: str) -> Manifest:
    digest = folder.name
    try:
        manifest = parse_manifest(json.loads((folder / MANIFEST_FILE).read_bytes()))
    except FileNotFoundError:
        raise NotFound(f"no stored version {route}/{digest[:16]}", hint="publish it again") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        why = error.strerror if isinstance(error, OSError) else error  # its own text holds the path; clients see this
        raise StoreCorrupted(f"{route}/{digest[:16]}: manifest unreadable ({why})", hint=_MEND) from error
    if manifest.digest != digest:
        raise StoreCorrupted(f"{route}/{digest[:16]}: the manifest is another version's", hint=_MEND)
    return manifest


def _mend(target: Path, staged: Path, names: Sequence[str]) -> None:
    """Replace what differs in a published folder, file by file: who reads an intact one is not disturbed."""
    for name in names:
        if _file_fault(target / name, sha256_file(staged / name)):
            (staged / name).replace(target / name)
    sync(target)


def _remove_abandoned(staging: Path) -> None:
    """Remove the copies of publications that were killed a day ago or longer."""
    for folder in staging.iterdir():
        with contextlib.suppress(OSError):  # another process may be removing it too
            if folder.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(folder)


def _file_fault(path: Path, expected: str) -> str | None:
    try:
        return None if sha256_file(path) == expected else f"{path.name} was altered"
    except OSError:
        return f"{path.name} is missing"


def _is_digest(text: str) -> bool:
    return len(text) == 64 and set(text) <= _HEX


def _require_digest(digest: str) -> None:
    if not _is_digest(digest):
        raise BadInput(f"{digest!r:.80} is not a sha256 in hex", hint="use the full digest")
