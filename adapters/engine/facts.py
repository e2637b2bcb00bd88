"""What an engine says of itself at `GET /branchline`: how a gateway learns what it talks to."""

from __future__ import annotations

import importlib.metadata
import os
import secrets
import sys
from pathlib import PurePath
from typing import Any

from .resolver import NAME, served_fingerprint


class Facts:
    """The facts of the engine in this process; `started` is new with each start."""

    def __init__(self) -> None:
        self._started = secrets.token_hex(8)
        self._fingerprints: dict[str, str | None] = {}

    def read(self, state: object) -> dict[str, object]:
        """Facts from the state of vLLM's app, `None` for what it does not say; blocks, as it reads the base's files.

        `resolves`: adapters are found by name here. `copies`: how many versions this engine has taken so far.
        """
        config = getattr(state, "vllm_config", None)
        model, lora = getattr(config, "model_config", None), getattr(config, "lora_config", None)
        resolver, switches = _resolver(), sys.modules.get("vllm.envs")
        path, dtype = getattr(model, "model", None), getattr(model, "dtype", None)
        return {
            "branchline": _version("branchline"),
            "vllm": getattr(sys.modules.get("vllm"), "__version__", None),
            "started": self._started,
            "base": PurePath(path).name if path else None,
            "base_fingerprint": self._fingerprint(path) if path else None,
            "store": _store_kind(os.environ.get("BRANCHLINE_STORE")),
            "resolves": resolver is not None and bool(getattr(switches, "VLLM_ALLOW_RUNTIME_LORA_UPDATING", False)),
            "copies": 0 if resolver is None else len(resolver.copies),
            "max_loras": getattr(lora, "max_loras", None),
            "max_lora_rank": getattr(lora, "max_lora_rank", None),
            "max_cpu_loras": getattr(lora, "max_cpu_loras", None),
            "max_model_len": getattr(model, "max_model_len", None),
            "dtype": str(dtype).removeprefix("torch.") if dtype is not None else None,
        }

    def _fingerprint(self, path: str) -> str | None:
        if path not in self._fingerprints:
            self._fingerprints[path] = served_fingerprint(path)
        return self._fingerprints[path]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _store_kind(location: str | None) -> str | None:
    if not location:
        return None
    scheme, found, _ = location.partition("://")
    return scheme if found else "local"


def _resolver() -> Any:
    registry: Any = getattr(sys.modules.get("vllm.lora.resolver"), "LoRAResolverRegistry", None)
    ours = registry is not None and NAME in registry.get_supported_resolvers()
    return registry.get_resolver(NAME) if ours else None
