"""What the commands share: opening a home, finding a version, and saying where a change is in force."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import click

from .convergence import wait_in_force
from .errors import BadInput, InvalidName
from .evidence import MAX_EVIDENCE_BYTES
from .home import Home
from .journal import Change
from .registry import Registry
from .store import Store
from .types import AdapterRef, AdapterVersion

PATH = click.Path(path_type=Path)
NUMBER = click.IntRange(1, 2**31 - 1)  # what every database holds


class Share(click.FloatRange):
    """A number from 0 to 1. click itself lets NaN through, which no comparison refuses."""

    name = "share"

    def __init__(self) -> None:
        super().__init__(0, 1)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        found = super().convert(value, param, ctx)
        if math.isnan(found):
            self.fail(f"{value!r} is not in the range 0<=x<=1.", param, ctx)
        return float(found)


SHARE = Share()


def open_home(home: Home, *, makes_registry: bool = False) -> tuple[Registry, Store]:
    """Registry and store of a home; inside a command the registry is closed when that ends.

    A registry that was named and is not there is made only where the command `makes_registry`: else a wrong name would
    be an empty registry.
    """
    registry = Registry.open(home.registry_url, create=makes_registry or not home.names_registry)
    context = click.get_current_context(silent=True)
    if context is not None:
        context.call_on_close(registry.close)
    return registry, home.open_store()


def find_version(registry: Registry, text: str) -> AdapterVersion:
    """The version that ROUTE@N or an engine name stands for."""
    ref = AdapterRef.parse(text)
    if ref.number is None:
        raise InvalidName(
            f"{text!r} names a route, not a version", hint=f"write {text}@N, see `branchline adapter list`"
        )
    found = registry.version(ref.route, ref.number)
    if ref.digest16 not in (None, found.digest[:16]):
        raise InvalidName(f"{found.ref} is {found.engine_name}, not {text}", hint="check the digest")
    return found


def read_bytes(path: Path, limit: int = MAX_EVIDENCE_BYTES) -> bytes:
    """At most one byte more than `limit`, for whoever reads on to refuse."""
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise BadInput(f"cannot read {path}: {error.strerror}", hint="check the path") from error


def wait_clock() -> float:
    """The moment a traffic command began, for "after N ms"."""
    return time.monotonic()


def announce(registry: Registry, change: Change, what: str, started: float, *, wait: bool) -> None:
    """Say what was done and where it is in force."""
    if not wait:
        click.echo(f"{what} (serial {change.event.serial})")
        return
    found = wait_in_force(registry, change.event.serial, route=change.state.name, started=started)
    click.echo(f"{what} (serial {change.event.serial}): {found}")
