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
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

from adapters.keys import KeyLimits

from ..keys.limits import Admission, Limits, Use
from ..keys.principal import Principal
from ..settings import MAX_WORKERS

SLOTS = 1 << 16  # more keys than that share slots, and with them their limits
_NAME = struct.Struct("=16s")
_METERS = struct.Struct("=dddd")  # requests, tokens: the level of each, and when that was on the machine's clock
_COUNT = struct.Struct("=I")
_RUNNING = _NAME.size + _METERS.size
SLOT_BYTES = _RUNNING + (MAX_WORKERS + 1) * _COUNT.size
_BLOCK_SLOTS = 1024  # read at once
LOCK_TRIES = 1000
LOCK_TRY_SECONDS = 0.00025  # between them: far longer in all than a busy machine lets a process wait for a core
NO_LIMITS = KeyLimits()


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
    """The table behind `descriptor`, as worker `number` writes it (0 is the parent). Closed with `close`."""

    def __init__(self, descriptor: int, number: int) -> None:
        self.descriptor = descriptor
        self._memory = mmap.mmap(descriptor, SLOTS * SLOT_BYTES)
        self._column = _RUNNING + number * _COUNT.size

    def slot(self, key: str) -> int:
        """Where the key's slot begins, its own from now on."""
        name = hashlib.blake2b(key.encode(), digest_size=_NAME.size).digest()
        first = int.from_bytes(name[:4]) % SLOTS
        self.lock(SLOTS * SLOT_BYTES)  # a byte behind the last slot: no key's
        try:
            for place in range(first, first + SLOTS):
                start = place % SLOTS * SLOT_BYTES
                (found,) = _NAME.unpack_from(self._memory, start)
                if found == bytes(_NAME.size):
                    _NAME.pack_into(self._memory, start, name)
                    return start
                if found == name:
                    return start
        finally:
            self.unlock(SLOTS * SLOT_BYTES)
        return first * SLOT_BYTES

    def lock(self, start: int) -> None:
        """Nobody else reads or writes the slot until `unlock`. Microseconds, so that an event loop may wait for it.

        For one that was stopped while it held the lock, nobody stands still longer than `LOCK_TRIES` take: a count
        may then be off by a request.
        """
        for _ in range(LOCK_TRIES):
            with suppress(BlockingIOError):
                fcntl.lockf(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, start)
                return
            time.sleep(LOCK_TRY_SECONDS)

    def unlock(self, start: int) -> None:
        fcntl.lockf(self.descriptor, fcntl.LOCK_UN, 1, start)

    def meters(self, start: int) -> tuple[float, ...]:
        """Level of the requests and when that was, level of the tokens and when that was."""
        return _METERS.unpack_from(self._memory, start + _NAME.size)

    def set_meters(self, start: int, meters: Iterable[float]) -> None:
        _METERS.pack_into(self._memory, start + _NAME.size, *meters)

    def set_own(self, start: int, count: int) -> None:
        """How many of the key's requests this worker answers."""
        _COUNT.pack_into(self._memory, start + self._column, max(0, count))

    def all_running(self, start: int) -> int:
        """How many of the key's requests all workers answer."""
        counts = self._memory[start + _RUNNING : start + SLOT_BYTES]
        return sum(count for (count,) in _COUNT.iter_unpack(counts))

    def clear(self, number: int) -> None:
        """Worker `number` is gone, and with it what it answered."""
        for start in self._taken():
            _COUNT.pack_into(self._memory, start + _RUNNING + number * _COUNT.size, 0)

    def _taken(self) -> Iterator[int]:
        """Where slots of keys begin. Read from the file: a look at mapped memory makes the kernel allocate it."""
        for block in range(0, SLOTS * SLOT_BYTES, _BLOCK_SLOTS * SLOT_BYTES):
            found = os.pread(self.descriptor, _BLOCK_SLOTS * SLOT_BYTES, block)
            if found.strip(b"\0"):
                for start in range(0, len(found), SLOT_BYTES):
                    if found[start : start + _NAME.size] != bytes(_NAME.size):
                        yield block + start

    def close(self) -> None:
        self._memory.close()
        os.close(self.descriptor)


class SharedUse(Use):
    """A `Use` whose meters are copies of those in its slot: good from `load` to `store`, with the slot locked between.

    The counts for metrics, `running` among them, are this worker's.
    """

    def __init__(self, before: Use, table: Table, start: int) -> None:
        super().__init__(before.name)
        self.admitted, self.tokens_counted, self.refused = before.admitted, before.tokens_counted, before.refused
        self._table = table
        self._start = start
        self._raw: tuple[float, ...] = ()

    @property
    def at_once(self) -> int:
        return self._table.all_running(self._start)

    def follow(self, limits: KeyLimits) -> None:
        super().follow(limits)
        self._fill()

    def load(self) -> None:
        self._table.lock(self._start)
        self._raw = self._table.meters(self._start)
        self._fill()

    def store(self) -> None:
        request_level, request_at, token_level, token_at = self._raw
        if self.requests is not None:
            request_level, request_at = self.requests.level, self.requests.at
        if self.tokens is not None:
            token_level, token_at = self.tokens.level, self.tokens.at
        self._table.set_meters(self._start, (request_level, request_at, token_level, token_at))
        self._table.set_own(self._start, self.running)
        self._table.unlock(self._start)

    def _fill(self) -> None:
        if self.requests is not None:
            self.requests.level, self.requests.at = self._raw[:2]
        if self.tokens is not None:
            self.tokens.level, self.tokens.at = self._raw[2:]


class SharedAdmission(Admission):
    """An `Admission` whose end all workers see. Its headers tell what this worker knew last."""

    __slots__ = ()

    def ended(self, tokens: int = 0) -> None:
        use = self._use
        if not self._running or not isinstance(use, SharedUse):
            return
        use.load()
        try:
            super().ended(tokens)
        finally:
            use.store()


class SharedLimits(Limits):
    """Keeps the contract of `Limits` for all workers together. Who has no limits has no slot."""

    def __init__(self, table: Table, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(clock)
        self._table = table

    def admit(self, principal: Principal) -> Admission:
        use = self._uses.get(principal.key_id or principal.name)
        if not isinstance(use, SharedUse):
            if principal.limits == NO_LIMITS:
                return super().admit(principal)
            use = self._share(principal, use or Use(principal.name))
        use.load()
        try:
            return super().admit(principal)
        finally:
            use.store()

    def _share(self, principal: Principal, before: Use) -> SharedUse:
        """Requests that are running without a limit are not counted against it."""
        key = principal.key_id or principal.name
        self._uses[key] = shared = SharedUse(before, self._table, self._table.slot(key))
        return shared

    def _admission(self, use: Use) -> Admission:
        return SharedAdmission(use, self._clock) if isinstance(use, SharedUse) else super()._admission(use)
