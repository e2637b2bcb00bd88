"""What is loaded in the engine: loads that several may wait for, versions asked for by number, late unloading."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Literal

from adapters.errors import BranchlineError
from adapters.probes import NO_PROBES, Probes
from adapters.store import Store
from adapters.types import AdapterVersion

from ..backends.base import Backend
from ..background import Background
from ..errors import AdapterUnavailable, NotApplied

UNLOAD_DELAY_SECONDS = 5.0
MAX_PINNED_EXTRAS = 16
PINS_AT_ONCE = 4  # a burst of requests for cold versions by number must not fill the engine with proofs
LoadOutcome = Literal["applied", "not_applied", "unavailable"]
OnLoad = Callable[[str, LoadOutcome, float], None]
FindProbes = Callable[[AdapterVersion], Probes]
log = logging.getLogger("branchline.residency")


def tell_nobody(_route: str, _outcome: LoadOutcome, _seconds: float) -> None:
    """For who does not count loads."""


class Residency:
    """Lives on the gateway's event loop. `is_kept` says whether a route keeps a version warm.

    `find_probes` runs in a thread; `on_load` hears of every load's route, outcome and seconds.
    """

    def __init__(
        self,
        store: Store,
        backend: Backend,
        background: Background,
        find_probes: FindProbes,
        is_kept: Callable[[AdapterVersion], bool],
        on_load: OnLoad,
    ) -> None:
        self._store = store
        self._backend = backend
        self._background = background
        self._find_probes = find_probes
        self._is_kept = is_kept
        self._on_load = on_load
        self._loads: dict[str, asyncio.Task[str | None]] = {}
        self._pinned: OrderedDict[str, AdapterVersion] = OrderedDict()
        self._pinning: set[asyncio.Task[str | None]] = set()  # loads that began because somebody named a version

    def has(self, version: AdapterVersion) -> bool:
        return self._backend.is_resident(version.engine_name)

    async def bring_in(self, version: AdapterVersion) -> None:
        """Load and prove a version; raises `AdapterUnavailable`. The load goes on where who waits is cancelled."""
        if self.has(version):
            return
        problem = await asyncio.shield(self._loading(version))
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
                await self._begin_pinned(version)
                await self.bring_in(version)
        except TimeoutError:
            raise AdapterUnavailable(f"{version.ref} is still loading; try again") from None

    async def _begin_pinned(self, version: AdapterVersion) -> None:
        """Begin to load what nobody loads yet, as one of `PINS_AT_ONCE`."""
        while self._is_cold(version):
            if len(self._pinning) < PINS_AT_ONCE:
                self._pinning.add(task := self._loading(version))
                task.add_done_callback(self._pinning.discard)
            else:
                await asyncio.wait(self._pinning, return_when=asyncio.FIRST_COMPLETED)

    def _is_cold(self, version: AdapterVersion) -> bool:
        return not self.has(version) and version.engine_name not in self._loads

    def _loading(self, version: AdapterVersion) -> asyncio.Task[str | None]:
        """The load under way, or a new one."""
        name = version.engine_name
        if name not in self._loads:
            self._loads[name] = self._background.spawn(self._load(version))
        return self._loads[name]

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
        started = time.perf_counter()
        outcome: LoadOutcome = "unavailable"
        try:
            self._require_own_base(version)
            if not await self._backend.ready():  # or every route would have its files hashed again and again
                raise AdapterUnavailable(f"{version.ref} cannot be loaded: no engine is up")
            await asyncio.to_thread(self._store.verify_version, version)
            probes = await asyncio.to_thread(self._probes, version)
            await self._backend.load(version, self._store.folder(version.route, version.digest), probes)
            outcome = "applied"
        except NotApplied as error:
            outcome = "not_applied"
            return error.message
        except BranchlineError as error:
            log.info("%s: %s", version.ref, error)  # with its hint, which clients do not see
            return error.message
        except Exception:
            log.exception("loading %s failed", version.ref)
            return f"{version.ref} could not be loaded: internal error, see the gateway's log"
        finally:
            del self._loads[version.engine_name]
            self._on_load(version.route, outcome, time.perf_counter() - started)
        if not self._is_kept(version):
            self.release(version)  # nobody may want it by now
        return None

    def _probes(self, version: AdapterVersion) -> Probes:
        """Where the registry does not answer, the engine's own prompts must do: a version may have to come back."""
        try:
            return self._find_probes(version)
        except BranchlineError as error:
            log.warning("%s is proved without its route's examples: %s", version.ref, error.message)
            return NO_PROBES

    def _require_own_base(self, version: AdapterVersion) -> None:
        mine, theirs = self._backend.base_fingerprint, version.manifest.base_fingerprint
        if mine is not None and mine != theirs:
            raise AdapterUnavailable(
                f"{version.ref} belongs to base {version.manifest.base_id} ({theirs[:16]}), "
                f"this gateway serves {self._backend.base_id} ({mine[:16]})"
            )
