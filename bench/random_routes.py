"""Routes with random but real adapters on the quickstart's base."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from adapters.base import find_base
from adapters.home import Home
from adapters.publish import publish_folder
from adapters.registry import Registry

from .adapter_folder import BASE, write_adapter


def publish_routes(home: Home, names: Sequence[str], *, versions: int = 1) -> dict[str, list[str]]:
    """Create routes with `versions` versions each, the first one live. Returns their engine names by route."""
    registry, store, base = Registry.open(home.registry_url), home.open_store(), find_base(str(BASE))
    published: dict[str, list[str]] = {}
    try:
        for position, name in enumerate(names):
            registry.create_route(name)
            published[name] = []
            for number in range(versions):
                with tempfile.TemporaryDirectory() as folder:
                    write_adapter(Path(folder), base, seed=position * versions + number)
                    done = publish_folder(registry, store, name, Path(folder), base)
                published[name].append(done.version.engine_name)
            registry.promote(name, 1, forced="benchmark")
    finally:
        registry.close()
    return published
