"""Engines behind one contract: see `base.py`."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigInvalid
from .base import Backend

BACKENDS = ("echo", "embedded")


def make_backend(name: str, base: str, *, cache: Path | None = None) -> Backend:
    """The engine `name` for the base `base` (a folder or a cached hub id; for echo, any id). Not started yet.

    `cache` remembers base fingerprints. Raises `ConfigInvalid` for an unknown name, and what `find_base` raises.
    """
    if name == "echo":
        from .echo import EchoBackend

        return EchoBackend(base)
    if name == "embedded":
        from adapters.base import find_base

        from .embedded.backend import EmbeddedBackend

        return EmbeddedBackend(find_base(base, cache=cache))
    raise ConfigInvalid(f"unknown backend {name!r}; choose one of {', '.join(BACKENDS)}")


__all__ = ["BACKENDS", "Backend", "make_backend"]
