"""vLLM's LoRA resolver: an engine name becomes a private, verified copy of that version's files.

`register` is a `vllm.general_plugins` entry point: vLLM calls it in every one of its processes, so importing this is
cheap, and nothing happens where `BRANCHLINE_STORE` is not set.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..store import Store
    from ..types import AdapterRef
    from .copies import Copies

NAME = "branchline"
log = logging.getLogger("vllm.branchline")  # below vLLM's own logger, whose handler writes the engine's log


def register() -> None:
    """Register the resolver with vLLM where `BRANCHLINE_STORE` names a store (a folder or an fsspec URL).

    On vLLM's CPU build this also keeps adapters off the base's rows of a batch.
    """
    location = os.environ.get("BRANCHLINE_STORE")
    if not location:
        return
    _mend_cpu_operations()
    registry: Any = importlib.import_module("vllm.lora.resolver")
    if NAME in registry.LoRAResolverRegistry.get_supported_resolvers():
        return
    from .copies import Copies, copies_root

    parent = os.environ.get("BRANCHLINE_ENGINE_COPIES")
    root = copies_root(Path(parent).expanduser() if parent else None)
    registry.LoRAResolver.register(Resolver)
    registry.LoRAResolverRegistry.register_resolver(NAME, Resolver(location, root, Copies(root)))


def _mend_cpu_operations() -> None:
    platforms: Any = importlib.import_module("vllm.platforms")
    if not platforms.current_platform.is_cpu():
        return
    from .base_rows import skip_base_rows

    try:
        skip_base_rows()
    except (ImportError, AttributeError) as error:  # another vLLM than the one this was written for
        log.warning("batches that mix base and adapters are not mended on this vLLM: %s", error)


class Resolver:
    """Resolves exact engine names (`sql@3.<16 hex>`) and nothing else; a virtual `LoRAResolver`.

    `location` is the store, `root` holds the cache of a remote one. A version that cannot be served is one line in
    the log and `None`: vLLM then answers 404.
    """

    def __init__(self, location: str, root: Path, copies: Copies) -> None:
        self.location = location
        self.copies = copies
        self._root = root
        self._asked: dict[str, asyncio.Task[Path | None]] = {}
        self._fingerprints: dict[str, str | None] = {}

    async def resolve_lora(self, base_model_name: str, lora_name: str) -> Any:
        """A `LoRARequest` for our copy of the version, `None` where there is none to serve."""
        folder = await self.folder(base_model_name, lora_name)
        if folder is None:
            return None
        request: Any = importlib.import_module("vllm.lora.request")
        return request.LoRARequest(lora_name=lora_name, lora_int_id=1, lora_path=str(folder))  # vLLM sets the id

    async def folder(self, base_model_name: str, lora_name: str) -> Path | None:
        """Where our copy of the version lies, `None` where there is none to serve. Hashes and fetches in a thread."""
        ref = _engine_ref(lora_name)
        if ref is None:
            return None
        task = self._asked.get(lora_name)
        if task is None:
            task = asyncio.create_task(asyncio.to_thread(self._take, base_model_name, ref))
            self._asked[lora_name] = task
            task.add_done_callback(lambda _: self._asked.pop(lora_name))
        return await asyncio.shield(task)  # who asked may go away; the copy is made once and to its end

    def _take(self, model: str, ref: AdapterRef) -> Path | None:
        from ..errors import AdaptersError

        try:
            store = open_store(self.location, self._root)
            manifest = store.manifest(ref.route, store.find(ref.route, ref.digest16 or ""))
            served = self._fingerprint(model)
            if served not in (None, manifest.base_fingerprint):
                trained = manifest.base_fingerprint[:16]
                log.warning("%s not served: trained on base %s, this is %s", ref, trained, str(served)[:16])
                return None
            return self.copies.take(store, ref.route, manifest)
        except (AdaptersError, OSError) as error:
            log.warning("%s not served: %s", ref, error)
            return None

    def _fingerprint(self, model: str) -> str | None:
        if model not in self._fingerprints:
            self._fingerprints[model] = served_fingerprint(model)
        return self._fingerprints[model]


def served_fingerprint(model: str) -> str | None:
    """The fingerprint of the base an engine serves, `None` (and a line in the log) where its files are not in sight."""
    from ..base import find_base
    from ..errors import AdaptersError

    try:
        return find_base(model).fingerprint
    except (AdaptersError, OSError) as error:
        log.warning("base unverified: %s", error)
        return None


def open_store(location: str, root: Path) -> Store:
    """The store at a folder or an fsspec URL; a remote one is cached below `root`, verified by digest."""
    import hashlib

    from ..remote import Remote
    from ..store import Store
    from .copies import make_root

    if "://" not in location:
        return Store(Path(location).expanduser())
    make_root(root)
    cache = root / "cache" / hashlib.sha256(location.encode()).hexdigest()[:16]
    return Store(cache, Remote(location))


def _engine_ref(name: str) -> AdapterRef | None:
    from ..errors import InvalidName
    from ..types import AdapterRef

    try:
        ref = AdapterRef.parse(name)
    except InvalidName:
        return None
    return ref if ref.digest16 else None
