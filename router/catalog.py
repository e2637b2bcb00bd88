"""What is in force: an immutable snapshot, moved towards what the registry wants, each route on its own.

Taking traffic away is applied at once. Bringing a version in is warmed and proved beside the traffic, then swapped
in for its route alone. The live version and the one before it are kept warm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapters.errors import BranchlineError, NotFound
from adapters.journal import Journal, View
from adapters.policy import Policy
from adapters.store import Store
from adapters.types import AdapterVersion, GatewayRow, InForce, RouteState

from .backends.base import Backend
from .classify.classifier import Classifier
from .errors import AdapterUnavailable
from .policy import RouteInForce, ServableVersion, Snapshot
from .watcher import Watcher

RETRY_SECONDS = 10.0
UNLOAD_DELAY_SECONDS = 5.0
MAX_PINNED_EXTRAS = 16
log = logging.getLogger("branchline.catalog")
LoadClassifier = Callable[[Path, str], Classifier]


@dataclass(slots=True)
class _Route:
    """A route as the registry wants it, and how far this gateway has come."""

    state: RouteState
    versions: Mapping[int, AdapterVersion]
    wanted_serial: int
    in_force: int | None = None
    serial: int = 0
    problem: str | None = None
    dropped: set[int] = field(default_factory=set)
    warming: asyncio.Task[None] | None = None

    @property
    def wanted(self) -> int | None:
        return self.state.live if self.state.enabled else None


class Catalog:
    """Lives on the gateway's event loop; only the watcher runs beside it. `snapshot` may be read at any time."""

    def __init__(
        self, journal: Journal, store: Store, backend: Backend, load_classifier: LoadClassifier, gateway_id: str
    ) -> None:
        self._journal = journal
        self._store = store
        self._backend = backend
        self._load_classifier = load_classifier
        self._gateway_id = gateway_id
        self._routes: dict[str, _Route] = {}
        self._pinned: OrderedDict[str, AdapterVersion] = OrderedDict()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watcher: Watcher | None = None
        self._heartbeat = GatewayRow(gateway_id, 0.0, 0, {})
        self.classifier: Classifier | None = None
        self.classifier_problem: str | None = None
        self.snapshot = Snapshot(0, backend.base_id, {})

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the registry, begin to warm what is live, and follow it from here on. Raises `RegistryUnavailable`."""
        loop = asyncio.get_running_loop()
        view = await asyncio.to_thread(self._journal.view)
        self._apply(view)

        def hand_over(newer: View) -> None:
            loop.call_soon_threadsafe(self._apply, newer)

        self._watcher = Watcher(self._journal, hand_over, self._beat, view.serial)
        self._watcher.start()

    async def settled(self) -> None:
        """Wait until everything that is being warmed or loaded has come to an end, well or not."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)

    @property
    def stale_seconds(self) -> float:
        """How long the registry has not answered, 0 while it does."""
        return self._watcher.stale_seconds if self._watcher else 0.0

    @property
    def problems(self) -> dict[str, str]:
        """Routes that are not as wanted, and why."""
        return {name: route.problem for name, route in self._routes.items() if route.problem}

    # -- versions asked for by number ------------------------------------------------------------------------------

    async def ensure_resident(self, route: str, number: int, *, timeout_seconds: float) -> None:
        """Load a pinned version where it is not resident; raises `AdapterUnavailable`."""
        version = self._routes[route].versions[number]
        self._pinned[version.engine_name] = version
        self._pinned.move_to_end(version.engine_name)
        if not self._backend.is_resident(version.engine_name):
            try:
                async with asyncio.timeout(timeout_seconds):
                    await self._load(version)
            except TimeoutError:
                raise AdapterUnavailable(f"{version.ref} is still loading; try again") from None
        while len(self._pinned) > MAX_PINNED_EXTRAS:
            self._unload_later(self._pinned.popitem(last=False)[1])

    # -- following the registry -----------------------------------------------------------------------------------

    def _apply(self, view: View) -> None:
        for state in view.routes:
            self._learn(state, view)
        if view.live_classifier != (self.classifier.digest if self.classifier else None):
            self._spawn(self._swap_classifier(view.live_classifier))
        self._publish(view.serial)
        for state in view.routes:
            self._warm(self._routes[state.name])

    def _learn(self, state: RouteState, view: View) -> None:
        versions = {one.number: one for one in view.versions if one.route == state.name}
        route = self._routes.get(state.name)
        if route is None:
            route = self._routes[state.name] = _Route(state, versions, 0)
        before = route.state
        route.state, route.versions, route.wanted_serial = state, versions, view.last_serials[state.name]
        for event in view.events:
            left = event.payload.get("from")
            if event.route == state.name and event.kind == "rolled_back" and isinstance(left, int):
                route.dropped.add(left)
            elif event.route == state.name and event.kind == "promoted" and event.number is not None:
                route.dropped.discard(event.number)
        route.problem = None
        self._settle(route)
        for number in {before.live, before.previous} - {state.live, state.previous, None}:
            if number in versions:
                self._unload_later(versions[number])

    def _settle(self, route: _Route) -> None:
        """Put in force what may answer now; what is wanted, if it is resident, at once."""
        wanted = route.wanted
        if wanted is None or self._backend.is_resident(route.versions[wanted].engine_name):
            route.in_force = wanted
        elif route.in_force in route.dropped | route.state.retired:
            route.in_force = None
        if route.in_force == wanted:
            route.serial = route.wanted_serial

    def _publish(self, serial: int) -> None:
        """Swap the snapshot and tell the fleet."""
        routes = {name: _as_policy_sees(route) for name, route in self._routes.items()}
        digest = self.classifier.digest if self.classifier else None
        self.snapshot = Snapshot(serial, self._backend.base_id, routes, digest)
        self._heartbeat = GatewayRow(
            self._gateway_id,
            0.0,
            serial,
            {name: _as_fleet_sees(route) for name, route in self._routes.items()},
            digest,
        )
        if self._watcher is not None:
            self._watcher.beat_now()

    def _beat(self) -> GatewayRow:
        return replace(self._heartbeat, last_seen=time.time())

    # -- warming --------------------------------------------------------------------------------------------------

    def _warm(self, route: _Route) -> None:
        if route.warming is None or route.warming.done():
            route.warming = self._spawn(self._warm_route(route))

    async def _warm_route(self, route: _Route) -> None:
        """Load the live version, then the one before it, until both are resident or refuse."""
        while missing := [
            number for number in (route.state.live, route.state.previous) if self._is_missing(route, number)
        ]:
            version = route.versions[missing[0] or 0]
            try:
                await self._load(version)
            except BranchlineError as error:
                log.error("%s could not be brought in: %s", version.ref, error)
                if version.number == route.state.live:
                    route.problem = f"{version.ref}: {error.message}"
                    self._publish(self.snapshot.serial)
                asyncio.get_running_loop().call_later(RETRY_SECONDS, self._warm, route)
                return
            self._settle(route)
            self._publish(self.snapshot.serial)

    def _is_missing(self, route: _Route, number: int | None) -> bool:
        return number is not None and not self._backend.is_resident(route.versions[number].engine_name)

    async def _load(self, version: AdapterVersion) -> None:
        """Verify the stored bytes, then have the engine load and prove them."""
        mine = self._backend.base_fingerprint
        if mine is not None and mine != version.manifest.base_fingerprint:
            raise AdapterUnavailable(
                f"{version.ref} belongs to base {version.manifest.base_id} ({version.manifest.base_fingerprint[:16]}), "
                f"this gateway serves {self._backend.base_id} ({mine[:16]})"
            )
        try:
            await asyncio.to_thread(self._store.verify, version.route, version.digest)
        except NotFound as error:
            raise AdapterUnavailable(error.message) from error
        await self._backend.load(version, self._store.folder(version.route, version.digest))

    def _unload_later(self, version: AdapterVersion) -> None:
        """Unload after requests that began before the change have opened; not if it is wanted again by then."""
        asyncio.get_running_loop().call_later(UNLOAD_DELAY_SECONDS, self._unload_now, version)

    def _unload_now(self, version: AdapterVersion) -> None:
        state = self._routes[version.route].state
        if version.number not in (state.live, state.previous) and version.engine_name not in self._pinned:
            self._spawn(self._backend.unload(version.engine_name))

    # -- the classifier -------------------------------------------------------------------------------------------

    async def _swap_classifier(self, digest: str | None) -> None:
        if digest is None:
            self.classifier, self.classifier_problem = None, None
        else:
            try:
                folder = self._store.classifier_folder(digest)
                self.classifier = await asyncio.to_thread(self._load_classifier, folder, digest)
                self.classifier_problem = None
            except BranchlineError as error:
                log.error("classifier %s could not be brought in: %s", digest[:16], error)
                self.classifier_problem = error.message
        self._publish(self.snapshot.serial)

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)


def _as_policy_sees(route: _Route) -> RouteInForce:
    versions = {
        number: ServableVersion(
            number, version.engine_name, number in route.state.ever_live, number in route.state.retired
        )
        for number, version in route.versions.items()
    }
    return RouteInForce(
        name=route.state.name,
        enabled=route.state.enabled,
        on_disabled=Policy.of(route.state.policy).on_disabled,
        wanted=route.wanted,
        in_force=route.in_force,
        serial=route.serial,
        versions=versions,
    )


def _as_fleet_sees(route: _Route) -> InForce:
    version = route.versions.get(route.in_force or 0)
    return InForce(route.serial, version.engine_name if version else None, route.problem)
