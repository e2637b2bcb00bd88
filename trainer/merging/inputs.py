"""The adapters a merge takes: found, and refused together with every problem of every one. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.base import Base
from adapters.check import Limits, check_folder
from adapters.errors import AdaptersError, BadAdapter
from adapters.home import Home
from adapters.manifests import weights_digest

from ..cli import find_published
from .config import Input

_LIMITS = Limits(max_lora_rank=512)


@dataclass(frozen=True, slots=True)
class Source:
    """One input. `version` is its engine name where it is a published version; `weight` `None` is still to be found."""

    name: str
    folder: Path
    digest: str
    weight: float | None
    version: str | None = None

    @property
    def parent(self) -> str:
        """What the merged version's manifest calls it: an engine name, or the digest of unpublished weights."""
        return self.version or self.digest

    @property
    def facts(self) -> dict[str, object]:
        """What the record says of it: no path."""
        return {"name": self.name, "weights_digest": self.digest, "weight": self.weight}


def find_sources(home: Home, inputs: Sequence[Input], base: Base) -> tuple[Source, ...]:
    """The inputs as plain LoRA adapters of `base`; raises `BadAdapter` with every problem of every input.

    A published version belongs to the base whose fingerprint its manifest names, a folder to the one it names by id.
    """
    found: list[Source] = []
    problems: list[str] = []
    for one in inputs:
        try:
            found.append(_folder(one, base) if Path(one.name).is_dir() else _version(home, one, base))
        except BadAdapter as error:
            problems += [f"{_shown(one)}: {problem}" for problem in error.problems]
        except AdaptersError as error:
            problems.append(f"{_shown(one)}: {error.message}")
    if problems:
        raise BadAdapter(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} with what is to be merged: "
            + "; ".join(problems),
            hint="give adapter folders, or versions as ROUTE@N, that are plain LoRA on this base",
            problems=problems,
        )
    return tuple(found)


def _folder(one: Input, base: Base) -> Source:
    folder = Path(one.name)
    check_folder(folder, base, limits=_LIMITS)
    return Source(folder.resolve().name, folder, weights_digest(folder), one.weight)


def _version(home: Home, one: Input, base: Base) -> Source:
    store, version = find_published(home, one.name)
    if version.manifest.base_fingerprint != base.fingerprint:
        raise BadAdapter(
            "another base",
            hint="give the base it was published on",
            problems=[
                f"belongs to base {version.manifest.base_id} ({version.manifest.base_fingerprint[:16]}), "
                f"--base is {base.id} ({base.fingerprint[:16]})"
            ],
        )
    store.verify_version(version)
    folder = store.folder(version.route, version.digest)
    check_folder(folder, base, limits=_LIMITS, base_is_same="its manifest has this base's fingerprint")
    return Source(str(version.ref), folder, version.digest, one.weight, version.engine_name)


def _shown(one: Input) -> str:
    return Path(one.name).name or one.name
