"""Engines behind one contract: see `base.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from adapters.base import find_base
from adapters.home import Home
from adapters.types import AdapterVersion

from ..errors import ConfigInvalid
from ..settings import EngineSettings
from .base import Backend

BACKENDS = ("echo", "embedded", "vllm")


def make_backend(
    settings: EngineSettings, home: Home, versions: Sequence[AdapterVersion] = (), *, say: Callable[[str], None]
) -> Backend:
    """The engine that `settings` asks for, not started yet. `versions` are those it should have room for.

    `say` is told how a start goes on. Raises `ConfigInvalid` for an unknown name, and what `find_base` raises.
    """
    if settings.backend == "echo":
        from .echo import EchoBackend

        folder = Path(settings.base).expanduser()  # of a folder the name alone is shown, as by the other engines
        return EchoBackend(folder.resolve().name if folder.is_dir() else settings.base)
    if settings.backend == "embedded":
        from .embedded.backend import EmbeddedBackend

        return EmbeddedBackend(find_base(settings.base, cache=home.fingerprints))
    if settings.backend == "vllm":
        from .vllm.build import build_vllm

        return build_vllm(settings, home, versions, say=say)
    raise ConfigInvalid(f"unknown backend {settings.backend!r}; choose one of {', '.join(BACKENDS)}")


__all__ = ["BACKENDS", "Backend", "make_backend"]
