"""What one start of one engine holds: vLLM does not say, so it is written down here. Pure; no I/O."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class Residents:
    """Mirrors vLLM's two LRU caches, of `max_cpu_loras` and of `max_loras` versions; `None` where unknown: no limit.

    vLLM touches a version with every decoding step, so versions that are being answered for count as used now. Where
    several gateways share an engine, each knows of its own calls only: a version may then cost its first call a load.
    """

    def __init__(self, max_cpu_loras: int | None = None, max_loras: int | None = None) -> None:
        self._max_cpu_loras = max_cpu_loras
        self._max_loras = max_loras
        self._proved: set[str] = set()
        self._refused: set[str] = set()
        self._cached: OrderedDict[str, None] = OrderedDict()
        self._active: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        """How many versions were proved on this start."""
        return len(self._proved)

    @property
    def names(self) -> tuple[str, ...]:
        """Those it has, the most recently used one last."""
        return tuple(self._cached)

    def has(self, name: str) -> bool:
        """Whether a call for `name` pays no load."""
        return name in self._cached

    def is_proved(self, name: str) -> bool:
        """Whether `name` was proved to be applied on this start; its weights may have left the cache since."""
        return name in self._proved

    def is_active(self, name: str) -> bool:
        """Whether `name` is surely among the versions that the engine decodes with, without a swap."""
        return name in self._active

    def add(self, name: str, *, busy: Iterable[str] = ()) -> None:
        """`name` was loaded and proved, while versions in `busy` were being answered for."""
        for other in busy:
            self.touch(other)
        self._refused.discard(name)
        self._proved.add(name)
        self._cached[name] = None
        self.touch(name)
        if self._max_cpu_loras is not None and len(self._cached) > self._max_cpu_loras:
            self._active.pop(self._cached.popitem(last=False)[0], None)

    def touch(self, name: str) -> None:
        """`name` was used."""
        if name not in self._cached:
            return
        self._cached.move_to_end(name)
        self._active[name] = None
        self._active.move_to_end(name)
        if self._max_loras is not None and len(self._active) > self._max_loras:
            self._active.popitem(last=False)

    def refuse(self, name: str) -> None:
        """`name` was proved not to be applied: this start shall not be asked again by itself."""
        self.forget(name)
        self._refused.add(name)

    def is_refused(self, name: str) -> bool:
        return name in self._refused

    def forget(self, name: str) -> None:
        """The engine does not hold `name` after all."""
        self._proved.discard(name)
        self._cached.pop(name, None)
        self._active.pop(name, None)
