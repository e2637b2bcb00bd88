"""From the server's settings to vLLM: engines that somebody runs, or one that Branchline starts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from adapters.base import find_base
from adapters.errors import AdaptersError
from adapters.home import Home
from adapters.types import AdapterVersion

from ...settings import EngineSettings
from .backend import VllmBackend
from .engines import external_backend, managed_backend
from .options import EngineOptions
from .process import ManagedEngine
from .sizing import fitting_cpu_loras, fitting_rank

LOG_FILE = "log/engine.log"


def build_vllm(
    settings: EngineSettings, home: Home, versions: Sequence[AdapterVersion], *, say: Callable[[str], None]
) -> VllmBackend:
    """Not started yet. Raises `ConfigInvalid`, and what `find_base` raises where Branchline starts the engine."""
    if settings.urls:
        return _external(settings, home)
    base = find_base(settings.base, cache=home.fingerprints)
    store = home.store_url or str(home.store)
    engine = ManagedEngine(base, store, options_of(settings, versions), say=say, log_file=home.folder / LOG_FILE)
    return managed_backend(engine, base_id=base.id, base_fingerprint=base.fingerprint)


def _external(settings: EngineSettings, home: Home) -> VllmBackend:
    """`--base` may be the id that the engines serve it under, where its files are not on this machine."""
    try:
        base = find_base(settings.base, cache=home.fingerprints)
        base_id, fingerprint = base.id, base.fingerprint
    except AdaptersError:
        base_id, fingerprint = settings.base, None
    return external_backend(
        settings.urls, settings.key, base_id=base_id, base_fingerprint=fingerprint, engine_store=settings.store
    )


def options_of(settings: EngineSettings, versions: Sequence[AdapterVersion]) -> EngineOptions:
    """What a managed engine is started with, with room for `versions` where the settings leave that open."""
    room = fitting_cpu_loras(versions, max_loras=settings.max_loras)
    return EngineOptions(
        python=settings.python,
        max_loras=settings.max_loras,
        max_lora_rank=settings.max_lora_rank or fitting_rank(versions),
        max_cpu_loras=settings.max_cpu_loras or room,
        dtype=settings.dtype,
        max_model_len=settings.max_model_len,
        tensor_parallel_size=settings.tensor_parallel_size,
        arguments=settings.arguments,
    )
