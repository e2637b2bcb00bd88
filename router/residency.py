"""What is loaded in the engine: loads that several may wait for, versions asked for by number, late unloading."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable

from adapters.errors import BranchlineError
from adapters.store import Store
from adapters.types import AdapterVersion

from .backends.base import Backend
from .background import Background
from .errors import AdapterUnavailable

UNLOAD_DELAY_SECONDS = 5.0
MAX_PINNED_EXTRAS = 16
log = logging.getLogger("branchline.residency")


class Residency:
    """Lives on the gateway's event loop. `is_kept` says whether a route keeps a version warm."""

    def __init__(
        self, store: Store, backend: Backend, background: Background, is_kept: Callable[[AdapterVersion], bool]
    ) -> None:
        self._store = store
        self._backend = backend
        self._background = background
        self._is_kept = is_kept
        self._loads: dict[str, asyncio.Task[str | None]] = {}
        self._pinned: OrderedDict[str, AdapterVersion] = OrderedDict()

    def has(self, version: AdapterVersion) -> bool:
        return self._backend.is_resident(version.engine_name)

    async def bring_in(self, version: AdapterVersion) -> None:
        """Load and prove a version; raises `AdapterUnavailable`. The load goes on where who waits is cancelled."""
        if self.has(version):
            return
        name = version.engine_name
        if name not in self._loads:
            self._loads[name] = self._background.spawn(self._load(version))
        problem = await asyncio.shield(self._loads[name])
        if problem is not None:
            raise AdapterUnavailable(problem)

    async def pin(self, version: AdapterVersion, *, timeout_seconds: float) -> None:
        """`bring_in` for a version that was asked for by number: the latest few of them stay."""
        self._pinned[version.engine_name] = version
        self._pinned.move_to_end(version.engine_name)
        while len(self._pinned) > MAX_PINNED_EXTRAS:
            self.release(self._pinned.popitem(last=False)[1])
        try:
            async with asyncio.timeout(timeout_seconds):
                await self.bring_in(version)
        except TimeoutError:
            raise AdapterUnavailable(f"{version.ref} is still loading; try again") from None

    def release(self, version: AdapterVersion) -> None:
        """Unload after requests that began before the change have opened; not if it is wanted again by then."""
        self._background.later(UNLOAD_DELAY_SECONDS, self._unload, version)

    def _unload(self, version: AdapterVersion) -> None:
        self._background.spawn(self._unload_unless_wanted(version))

    async def _unload_unless_wanted(self, version: AdapterVersion) -> None:
        name = version.engine_name
        if not (self._is_kept(version) or name in self._pinned or name in self._loads):
            await self._backend.unload(name)

    async def _load(self, version: AdapterVersion) -> str | None:
        """Verify the stored bytes, then have the engine load and prove them; returns what went wrong."""
        try:
            self._require_own_base(version)
            await asyncio.to_thread(self._store.verify_version, version)
            await self._backend.load(version, self._store.folder(version.route, version.digest))
        except BranchlineError as error:
            return error.message
        except Exception:
            log.exception("loading %s failed", version.ref)
            return f"{version.ref} could not be loaded: internal error, see the gateway's log"
        finally:
            del self._loads[version.engine_name]
        if not self._is_kept(version):
            self.release(version)  # nobody may want it by now
        return None

    def _require_own_base(self, version: AdapterVersion) -> None:
        mine, theirs = self._backend.base_fingerprint, version.manifest.base_fingerprint
        if mine is not None and mine != theirs:
            raise AdapterUnavailable(
                f"{version.ref} belongs to base {version.manifest.base_id} ({theirs[:16]}), "
                f"this gateway serves {self._backend.base_id} ({mine[:16]})"
            )
