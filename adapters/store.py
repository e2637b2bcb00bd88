"""Version folders by full digest: `store/<route>/<digest>/`, written aside, fsynced, manifest last, renamed.

A folder without a manifest does not exist. Files are read-only once published and never rewritten.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from .check import FILES
from .errors import BadInput, NotFound, StoreCorrupted
from .evidence import Evidence, parse_evidence
from .rows import sha256_file, sha256_json
from .types import Manifest, RouteName

MANIFEST_FILE = "manifest.json"
_CHUNK_BYTES = 1024 * 1024
_STAGING = ".staging"
_HEX = frozenset("0123456789abcdef")


def weights_digest(folder: Path) -> str:
    """The digest a version is filed under: sha256 over the digests of the two files an engine loads."""
    return digest_of_files({name: sha256_file(folder / name) for name in FILES})


def digest_of_files(files: Mapping[str, str]) -> str:
    """sha256 (hex) of a mapping from file name to sha256."""
    return sha256_json(dict(files))


class Store:
    """Artifacts on a local file system. Safe for many processes: publication is a rename."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextlib.contextmanager
    def staged(self, source: Path, names: Sequence[str] = FILES) -> Iterator[Path]:
        """A private copy of `names` from `source`, to be checked and then published; removed on the way out."""
        staging = self.root / _STAGING
        staging.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = Path(tempfile.mkdtemp(dir=staging))
        try:
            for name in names:
                _copy(source / name, aside / name)
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def publish(self, route: RouteName, staged: Path, manifest: Manifest) -> Path:
        """Move a staged folder to its place; where an intact one lies there already, that one stays."""
        return self._place(self.folder(route, manifest.digest), staged, _manifest_json(manifest))

    def folder(self, route: str, digest: str) -> Path:
        """Where a version's files lie, published or not."""
        _require_digest(digest)
        return self.root / route / digest

    def manifest(self, route: str, digest: str) -> Manifest:
        """The manifest of a published version; raises `NotFound`, or `StoreCorrupted` where it cannot be read."""
        path = self.folder(route, digest) / MANIFEST_FILE
        try:
            return parse_manifest(json.loads(path.read_bytes()))
        except FileNotFoundError:
            raise NotFound(f"no stored version {route}/{digest[:16]}", hint="publish it again") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreCorrupted(f"{route}/{digest[:16]}: manifest unreadable ({error})", hint=_MEND) from error

    def verify(self, route: str, digest: str) -> Manifest:
        """Hash a version's files against its manifest and its digest; raises `StoreCorrupted` naming what differs."""
        manifest = self.manifest(route, digest)
        _verify_files(self.folder(route, digest), manifest.files, digest, f"{route}/{digest[:16]}")
        return manifest

    def put_evidence(self, route: RouteName, evidence: Evidence) -> str:
        """File evidence under its own digest and return that."""
        path = self._evidence_path(route, evidence.digest)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if not path.exists():
            _write_atomically(path, evidence.to_json().encode())
        return evidence.digest

    def evidence(self, route: str, digest: str) -> Evidence:
        """Evidence by digest, verified."""
        try:
            raw = self._evidence_path(route, digest).read_bytes()
        except FileNotFoundError:
            raise NotFound(f"no stored evidence {digest[:16]} for {route}", hint="attach it again") from None
        if hashlib.sha256(raw).hexdigest() != digest:
            raise StoreCorrupted(f"evidence {digest[:16]} of {route} was altered", hint="attach it again")
        return parse_evidence(raw)

    def publish_classifier(self, staged: Path, digest: str) -> Path:
        """Place a staged classifier folder under the digest it carries; its own loader verifies it against that."""
        manifest = {"digest": digest, "files": sorted(file.name for file in staged.iterdir())}
        return self._place(self._classifier_path(digest), staged, json.dumps(manifest, sort_keys=True).encode())

    def classifier_folder(self, digest: str) -> Path:
        """Where a published classifier lies; raises `NotFound`."""
        folder = self._classifier_path(digest)
        if not (folder / MANIFEST_FILE).exists():
            raise NotFound(f"no stored classifier {digest[:16]}", hint="fit and publish it again")
        return folder

    def _classifier_path(self, digest: str) -> Path:
        _require_digest(digest)
        return self.root / "classifier" / digest

    def _evidence_path(self, route: str, digest: str) -> Path:
        _require_digest(digest)
        return self.root / route / "evidence" / f"{digest}.json"

    def _place(self, target: Path, staged: Path, manifest: bytes) -> Path:
        if (target / MANIFEST_FILE).exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        for file in staged.iterdir():
            file.chmod(0o400)
            _sync(file)
        _write_atomically(staged / MANIFEST_FILE, manifest)
        try:
            staged.rename(target)
        except OSError:
            if not (target / MANIFEST_FILE).exists():
                raise  # not a concurrent publication of the same bytes
        _sync(target.parent)
        return target


_MEND = "publish the same folder again, or retire the version"


def parse_manifest(value: Mapping[str, object]) -> Manifest:
    """The inverse of `manifest_to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    fields: dict[str, object] = dict(value)
    for name in ("targets", "parents", "notes"):
        found = fields.get(name, ())
        if not isinstance(found, (list, tuple)):
            raise TypeError(f"{name} is not a list")
        fields[name] = tuple(str(one) for one in found)
    manifest = Manifest(**fields)  # type: ignore[arg-type]  # checked right below
    _require_digest(manifest.digest)
    if digest_of_files(manifest.files) != manifest.digest:
        raise ValueError("file digests do not hash to the version's digest")
    return manifest


def manifest_to_json(manifest: Manifest) -> dict[str, object]:
    """A manifest as plain JSON values."""
    return {**asdict(manifest), "files": dict(manifest.files), "training": dict(manifest.training)}


def _manifest_json(manifest: Manifest) -> bytes:
    return json.dumps(manifest_to_json(manifest), sort_keys=True, indent=1).encode()


def _verify_files(folder: Path, files: Mapping[str, str], digest: str, what: str) -> None:
    problems = [problem for name in files if (problem := _file_fault(folder / name, files[name]))]
    if digest_of_files(files) != digest:
        problems.append("the manifest is another version's")
    if problems:
        raise StoreCorrupted(f"{what}: {'; '.join(problems)}", hint=_MEND)


def _file_fault(path: Path, expected: str) -> str | None:
    try:
        return None if sha256_file(path) == expected else f"{path.name} was altered"
    except OSError:
        return f"{path.name} is missing"


def _require_digest(digest: str) -> None:
    if len(digest) != 64 or not set(digest) <= _HEX:
        raise BadInput(f"{digest!r:.80} is not a sha256 in hex", hint="use the full digest")


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("xb") as writer:
        for piece in _pieces(reader.read):
            writer.write(piece)
        writer.flush()
        os.fsync(writer.fileno())


def _pieces(read: Callable[[int], bytes]) -> Iterator[bytes]:
    while piece := read(_CHUNK_BYTES):
        yield piece


def _write_atomically(path: Path, content: bytes) -> None:
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
    _sync(path.parent)


def _sync(path: Path) -> None:
    """fsync a file or a folder, so that a rename survives a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
