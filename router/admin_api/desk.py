"""Where the admin API does its work: threads of its own, over a registry connection of its own.

A registry that is locked, slow or gone refuses what is asked here and disturbs no other request.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from adapters.errors import RegistryUnavailable
from adapters.home import Home
from adapters.registry import Registry
from adapters.store import Store

from ..errors import AdminOverloaded

THREADS = 4
MAX_PENDING = 64
BUSY_TIMEOUT_MS = 5000
log = logging.getLogger("branchline.admin")
Done = TypeVar("Done")


class Desk:
    """Lives on one event loop. The registry is opened when it is first asked for."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._store = home.open_store()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="admin")
        self._opening = threading.Lock()
        self._registry: Registry | None = None
        self._pending = 0

    async def do(self, work: Callable[[Registry, Store], Done]) -> Done:
        """Run `work` in a thread. Raises what it raises, and `AdminOverloaded` where too much waits already."""
        if self._pending >= MAX_PENDING:
            raise AdminOverloaded(f"{MAX_PENDING} admin requests are being worked on already")
        self._pending += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, partial(self._do, work))
        finally:
            self._pending -= 1

    def close(self) -> None:
        """Take no more work. What has begun ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        if self._registry is not None:
            self._registry.close()

    def _do(self, work: Callable[[Registry, Store], Done]) -> Done:
        try:
            return work(self._opened(), self._store)
        except RegistryUnavailable as error:  # its reason may name hosts and files
            log.warning("the registry could not be used: %s", error.message)
            raise RegistryUnavailable("the registry cannot be used now", hint=error.message) from error

    def _opened(self) -> Registry:
        with self._opening:
            if self._registry is None:
                url = self._home.registry_url
                self._registry = Registry.open_existing(url, actor="gateway", busy_timeout_ms=BUSY_TIMEOUT_MS)
            return self._registry
