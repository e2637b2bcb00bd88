"""The two ways to a `VllmBackend`: engines that somebody runs, and one that Branchline runs."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from ...errors import ConfigInvalid
from ...settings import is_engine_address
from .backend import Engine, VllmBackend
from .client import FixedAddress
from .process import ManagedEngine
from .rhythm import Rhythm

MANAGED = "vllm"


def external_backend(
    urls: Sequence[str],
    key: str | None,
    *,
    base_id: str,
    base_fingerprint: str | None = None,
    engine_store: str | None = None,
    start_seconds: float = 120.0,
    rhythm: Rhythm | None = None,
) -> VllmBackend:
    """Engines at `urls`, all with the same key and base. Raises `ConfigInvalid` for what is no address, or twice there.

    `engine_store` is the store's path as an engine without Branchline's plugin sees it.
    """
    problems = [
        f"engine {place} has no address that can be used, expected http://HOST:PORT (a key goes into the environment)"
        for place, url in enumerate(urls, 1)
        if not is_engine_address(url)
    ]
    problems += [f"{url} is given twice" for url in dict.fromkeys(urls) if urls.count(url) > 1]
    if problems or not urls:
        raise ConfigInvalid("; ".join(problems) or "no engine's address is given")
    engines = [Engine(_name(url), FixedAddress(url.rstrip("/"), key)) for url in urls]
    return VllmBackend(
        base_id,
        engines,
        base_fingerprint=base_fingerprint,
        engine_store=engine_store,
        start_seconds=start_seconds,
        rhythm=rhythm,
    )


def managed_backend(
    engine: ManagedEngine, *, base_id: str, base_fingerprint: str | None, rhythm: Rhythm | None = None
) -> VllmBackend:
    """The engine that Branchline starts with the backend, and stops with it."""
    own = Engine(MANAGED, engine, keeper=engine, start=engine.start, stop=engine.stop)
    backend = VllmBackend(base_id, [own], base_fingerprint=base_fingerprint, rhythm=rhythm)
    engine.on_change = backend.look
    return backend


def _name(url: str) -> str:
    parts = urlsplit(url)
    return parts.netloc + parts.path.rstrip("/")
