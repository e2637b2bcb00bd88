"""What an engine is started with where the operator said nothing: room for every version there is, and some more."""

from __future__ import annotations

import os
from collections.abc import Sequence

from adapters.types import AdapterVersion

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM takes as `max_lora_rank`: vllm/config/lora.py
LEAST_RANK = 16
SPARE_VERSIONS = 16
MEMORY_SHARE = 0.25


def fitting_rank(versions: Sequence[AdapterVersion]) -> int:
    """The smallest rank vLLM takes that every version fits into, at least `LEAST_RANK`; the largest where none does."""
    largest = max([LEAST_RANK, *(version.manifest.rank for version in versions)])
    return next((rank for rank in RANKS if rank >= largest), RANKS[-1])


def fitting_cpu_loras(versions: Sequence[AdapterVersion], *, max_loras: int, memory_bytes: int | None = None) -> int:
    """How many versions an engine keeps in memory: all and `SPARE_VERSIONS` more, within `MEMORY_SHARE` of it."""
    memory = physical_memory() if memory_bytes is None else memory_bytes
    largest = max([1, *(version.manifest.size_bytes for version in versions)])
    return max(max_loras, min(len(versions) + SPARE_VERSIONS, int(memory * MEMORY_SHARE) // largest))


def physical_memory() -> int:
    """Bytes of memory of this machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
