"""The limits of keys, counted once for all workers: in a table of memory that they share, a slot for each key.

A slot is locked while it is read and written. The kernel frees the lock of a process that dies; how many requests a
worker answers is counted in a column of its own, which the parent clears when that worker is gone.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from adapters.keys import KeyLimits

from ..limits import Admission, Limits, Meter, Use
from ..principal import Principal
from ..settings import MAX_WORKERS

SLOTS = 1 << 16  # more keys than that share slots, and with them their limits
_NAME = struct.Struct("=16s")
_METER = struct.Struct("=dd")  # level and when that was, on the clock of the machine
_COUNT = struct.Struct("=I")
_REQUESTS = _NAME.size
_TOKENS = _REQUESTS + _METER.size
_RUNNING = _TOKENS + _METER.size
SLOT_BYTES = _RUNNING + (MAX_WORKERS + 1) * _COUNT.size


def new_table() -> int:
    """A descriptor of an empty table that no path leads to. It takes memory for the keys that ask, not for all slots.

    Whoever inherits it shares it; close it in the end.
    """
    if sys.platform == "linux":  # where a full disk is no concern of it
        descriptor = os.memfd_create("branchline-limits")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, SLOTS * SLOT_BYTES)
    return descriptor


class Table:
    """The table behind `descriptor`, as worker `number` writes it (0 is the parent)."""

    def __init__(self, descriptor: int, number: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, SLOTS * SLOT_BYTES)
        self._number = number
        self._depth = 0

    def slot(self, key: str) -> int:
        """Where the key's slot begins, its own from now on."""
        name = hashlib.blake2b(key.encode(), digest_size=_NAME.size).digest()
        first = int.from_bytes(name[:4]) % SLOTS
        with self.locked(SLOTS * SLOT_BYTES):  # a byte behind the last slot: no key's
            for place in range(first, first + SLOTS):
                start = place % SLOTS * SLOT_BYTES
                (found,) = _NAME.unpack_from(self._memory, start)
                if found == bytes(_NAME.size):
                    _NAME.pack_into(self._memory, start, name)
                    return start
                if found == name:
                    return start
        return first * SLOT_BYTES

    @contextmanager
    def locked(self, start: int) -> Iterator[None]:
        """Nobody else reads or writes the slot meanwhile. Microseconds, so that an event loop may wait for it."""
        if self._depth == 0:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX, 1, start)
        self._depth += 1
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN)

    def meter(self, at: int) -> tuple[float, float]:
        level, when = _METER.unpack_from(self._memory, at)
        return level, when

    def set_meter(self, at: int, level: float, when: float) -> None:
        _METER.pack_into(self._memory, at, level, when)

    def own(self, start: int) -> int:
        """How many of the key's requests this worker answers."""
        (count,) = _COUNT.unpack_from(self._memory, start + _RUNNING + self._number * _COUNT.size)
        return int(count)

    def set_own(self, start: int, count: int) -> None:
        _COUNT.pack_into(self._memory, start + _RUNNING + self._number * _COUNT.size, max(0, count))

    def all_running(self, start: int) -> int:
        """How many of the key's requests all workers answer."""
        counts = self._memory[start + _RUNNING : start + SLOT_BYTES]
        return sum(count for (count,) in _COUNT.iter_unpack(counts))

    def clear(self, number: int) -> None:
        """Worker `number` is gone, and with it what it answered."""
        for start in range(0, SLOTS * SLOT_BYTES, SLOT_BYTES):
            if self._memory[start]:
                _COUNT.pack_into(self._memory, start + _RUNNING + number * _COUNT.size, 0)

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)


class SharedMeter(Meter):
    """A `Meter` whose level all workers see."""

    def __init__(self, limit: int, table: Table, at: int) -> None:
        self.limit = limit
        self._table = table
        self._at = at

    @property
    def level(self) -> float:
        return self._table.meter(self._at)[0]

    @level.setter
    def level(self, level: float) -> None:
        self._table.set_meter(self._at, level, self.at)

    @property
    def at(self) -> float:
        return self._table.meter(self._at)[1]

    @at.setter
    def at(self, when: float) -> None:
        self._table.set_meter(self._at, self.level, when)


class SharedUse(Use):
    """A `Use` whose meters and running requests all workers see; the counts for metrics are this worker's."""

    def __init__(self, name: str, table: Table, start: int) -> None:
        self.table = table
        self.start = start
        super().__init__(name)

    @property
    def running(self) -> int:
        return self.table.own(self.start)

    @running.setter
    def running(self, count: int) -> None:
        self.table.set_own(self.start, count)

    @property
    def at_once(self) -> int:
        return self.table.all_running(self.start)

    def follow(self, limits: KeyLimits) -> None:
        self.limits = limits
        self.requests = self._meter(limits.requests_per_minute, _REQUESTS)
        self.tokens = self._meter(limits.tokens_per_minute, _TOKENS)

    def _meter(self, limit: int | None, offset: int) -> Meter | None:
        return None if limit is None else SharedMeter(limit, self.table, self.start + offset)


class SharedAdmission(Admission):
    """An `Admission` that locks its key's slot."""

    __slots__ = ()

    def headers(self) -> dict[str, str]:
        with self._locked():
            return super().headers()

    def ended(self, tokens: int = 0) -> None:
        with self._locked():
            super().ended(tokens)

    def _locked(self) -> AbstractContextManager[None]:
        use = self._use
        return use.table.locked(use.start) if isinstance(use, SharedUse) else nullcontext()


class SharedLimits(Limits):
    """Keeps the contract of `Limits` for all workers together. Who has no key has no limits, and no slot."""

    def __init__(self, table: Table, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._table = table
        self._starts: dict[str, int] = {}

    def admit(self, principal: Principal) -> Admission:
        key, limits = principal.key_id, principal.limits
        if key is None:
            return super().admit(principal)
        start = self._starts.get(key)
        if start is None:
            start = self._starts[key] = self._table.slot(key)
        if limits == KeyLimits():
            return super().admit(principal)  # it writes its own column alone
        with self._table.locked(start):
            return super().admit(principal)

    def _new_use(self, principal: Principal) -> Use:
        if principal.key_id is None:
            return Use(principal.name)
        return SharedUse(principal.name, self._table, self._starts[principal.key_id])

    def _admission(self, use: Use) -> Admission:
        unlimited = not isinstance(use, SharedUse) or use.limits == KeyLimits()
        return super()._admission(use) if unlimited else SharedAdmission(use, self._clock)
