"""Publishing: a PEFT folder becomes an immutable version of a route, its evidence filed beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .base import Base
from .check import FILES, Limits, check_folder, file_problems, left_behind
from .errors import Refused
from .evidence import Evidence
from .manifests import digest_of_files
from .registry import Registry
from .rows import sha256_file
from .store import Store
from .types import AdapterVersion, Json, Manifest


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a version comes from, as far as its publisher knows."""

    training: Json = field(default_factory=dict)
    data_digests: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    base_is_same: str | None = None


@dataclass(frozen=True, slots=True)
class Published:
    """What came of it. `created` is false where the route had these bytes already."""

    version: AdapterVersion
    created: bool
    left_behind: tuple[str, ...]
    evidence_digest: str | None


def publish_folder(
    registry: Registry,
    store: Store,
    route: str,
    folder: Path,
    base: Base,
    *,
    evidence: Evidence | None = None,
    limits: Limits | None = None,
    provenance: Provenance | None = None,
) -> Published:
    """Check, store and number a PEFT folder; nothing is live afterwards.

    The folder is copied first and the copy is checked, so that it cannot change in between. Raises `BadAdapter`
    with every problem, `NotFound` for an unknown route, `Refused` for evidence of other weights. A crash leaves
    at most an unreferenced folder in the store, which the next publication of the same bytes takes up.
    """
    limits, provenance = limits or Limits(), provenance or Provenance()
    name = registry.route(route).name
    if file_problems(folder, limits):
        check_folder(folder, base, limits=limits, base_is_same=provenance.base_is_same)
    others = tuple(left_behind(folder))
    with store.staged(folder) as staged:
        manifest = _manifest(staged, folder, base, limits, provenance)
        known = next((one.manifest for one in registry.versions(name) if one.digest == manifest.digest), manifest)
        if evidence is not None:
            require_bound(evidence, known.digest, known.base_fingerprint)
        store.publish(name, staged, known)
    version, created = registry.publish(name, known)
    digest = attach_evidence(registry, store, version, evidence) if evidence is not None else None
    return Published(version, created, others, digest)


def attach_evidence(registry: Registry, store: Store, version: AdapterVersion, evidence: Evidence) -> str:
    """File evidence for a version and say so in the history; attaching the same twice changes nothing."""
    require_bound(evidence, version.digest, version.manifest.base_fingerprint)
    digest = store.put_evidence(version.route, evidence)
    registry.add_evidence(version.route, version.number, digest)
    return digest


def require_bound(evidence: Evidence, weights_digest: str, base_fingerprint: str) -> None:
    """Refuse evidence that speaks about other weights or another base."""
    if evidence.weights_digest != weights_digest:
        raise Refused(
            f"this evidence speaks of weights {evidence.weights_digest[:16]}, the version is {weights_digest[:16]}",
            hint="attach the evidence that was taken with these weights",
        )
    if evidence.base_fingerprint != base_fingerprint:
        raise Refused(
            f"this evidence was taken on base {evidence.base_fingerprint[:16]}, "
            f"the version belongs to {base_fingerprint[:16]}",
            hint="evaluate the version on its own base",
        )


def _manifest(staged: Path, source: Path, base: Base, limits: Limits, provenance: Provenance) -> Manifest:
    checked = check_folder(staged, base, source=source, limits=limits, base_is_same=provenance.base_is_same)
    files = {name: sha256_file(staged / name) for name in FILES}
    return Manifest(
        digest=digest_of_files(files),
        files=files,
        size_bytes=sum((staged / name).stat().st_size for name in FILES),
        base_id=base.id,
        base_fingerprint=base.fingerprint,
        rank=checked.rank,
        alpha=checked.alpha,
        targets=checked.targets,
        training=provenance.training,
        data_digests=provenance.data_digests,
        parents=provenance.parents,
        notes=checked.notes,
    )
