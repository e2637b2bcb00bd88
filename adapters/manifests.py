"""A version's manifest as JSON, and the digest it is filed under."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from .check import FILES
from .rows import sha256_file, sha256_json
from .types import Manifest


def weights_digest(folder: Path) -> str:
    """The digest a version is filed under: sha256 over the digests of the two files an engine loads."""
    return digest_of_files({name: sha256_file(folder / name) for name in FILES})


def digest_of_files(files: Mapping[str, str]) -> str:
    """sha256 (hex) of a mapping from file name to sha256."""
    return sha256_json(dict(files))


def parse_manifest(value: Mapping[str, object]) -> Manifest:
    """The inverse of `manifest_to_json`; raises `KeyError`, `TypeError` or `ValueError` for anything else."""
    fields: dict[str, object] = dict(value)
    for name in ("targets", "parents", "notes"):
        found = fields.get(name, ())
        if not isinstance(found, (list, tuple)):
            raise TypeError(f"{name} is not a list")
        fields[name] = tuple(str(one) for one in found)
    manifest = Manifest(**fields)  # type: ignore[arg-type]  # checked right below
    if not all(Path(name).name == name for name in manifest.files):
        raise ValueError("files are not plain names")
    if digest_of_files(manifest.files) != manifest.digest:
        raise ValueError("file digests do not hash to the version's digest")
    return manifest


def manifest_to_json(manifest: Manifest) -> dict[str, object]:
    """A manifest as plain JSON values."""
    return {**asdict(manifest), "files": dict(manifest.files), "training": dict(manifest.training)}


def manifest_bytes(manifest: Manifest) -> bytes:
    """A manifest as it is stored."""
    return json.dumps(manifest_to_json(manifest), sort_keys=True, indent=1).encode()
