"""Where a Branchline installation keeps its state, and how the command line opens it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder (0700) and the registry's URL: by default SQLite in that folder."""

    folder: Path
    registry_url: str

    @classmethod
    def at(cls, folder: str | Path, registry_url: str | None = None) -> Home:
        path = Path(folder).expanduser().resolve()
        return cls(path, registry_url or f"sqlite:///{path / 'registry.db'}")

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def fingerprints(self) -> Path:
        """The cache file of base fingerprints."""
        return self.folder / "fingerprints.json"


def home_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a click command `--home` and `--registry`, and pass it the `Home` they name as its first argument."""

    @click.option("--home", envvar="BRANCHLINE_HOME", default="~/.branchline", show_default=True, help="State folder.")
    @click.option("--registry", envvar="BRANCHLINE_REGISTRY", default=None, help="Registry URL [default: in the home].")
    @functools.wraps(command)
    def with_home(home: str, registry: str | None, **kwargs: object) -> None:
        command(Home.at(home, registry), **kwargs)

    return with_home
