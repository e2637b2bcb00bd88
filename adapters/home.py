"""Where a Branchline installation keeps its state, and how the command line opens it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click
from sqlalchemy import URL

from .remote import Remote
from .store import Store


@dataclass(frozen=True, slots=True)
class Home:
    """A home folder (0700), the registry's URL (by default SQLite in that folder), and where artifacts are kept.

    With a `store_url` (fsspec), `store` in the home folder is its verified cache.
    """

    folder: Path
    registry_url: str
    store_url: str | None = None

    @classmethod
    def at(cls, folder: str | Path, registry_url: str | None = None, store_url: str | None = None) -> Home:
        path = Path(folder).expanduser().resolve()
        here = URL.create("sqlite", database=str(path / "registry.db"))  # a folder's name may hold "?" or "%"
        return cls(path, registry_url or here.render_as_string(), store_url)

    @property
    def names_registry(self) -> bool:
        """Whether a registry was named, in place of the one in the home folder."""
        return self.registry_url != Home.at(self.folder).registry_url

    @property
    def store(self) -> Path:
        return self.folder / "store"

    def open_store(self) -> Store:
        return Store(self.store, Remote(self.store_url) if self.store_url else None)

    @property
    def fingerprints(self) -> Path:
        """The cache file of base fingerprints."""
        return self.folder / "fingerprints.json"


def home_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a click command `--home` and `--registry`, and pass it the `Home` they name as its first argument."""

    @click.option("--home", envvar="BRANCHLINE_HOME", default="~/.branchline", show_default=True, help="State folder.")
    @click.option("--registry", envvar="BRANCHLINE_REGISTRY", default=None, help="Registry URL [default: in the home].")
    @click.option(
        "--store", envvar="BRANCHLINE_STORE", default=None, help="Artifacts, any fsspec URL [default: in the home]."
    )
    @functools.wraps(command)
    def with_home(home: str, registry: str | None, store: str | None, **kwargs: object) -> None:
        command(Home.at(home, registry, store), **kwargs)

    return with_home
