"""What is in force: an immutable snapshot, moved towards what the registry wants, each route on its own.

Taking traffic away is applied at once. Bringing a version in is warmed and proved beside the traffic, then swapped
in for its route alone. The live version and the one before it are kept warm.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from adapters.errors import BranchlineError
from adapters.journal import Journal, View
from adapters.store import Store
from adapters.types import AdapterVersion, Event, GatewayRow, InForce, RouteState

from .backends.base import Backend
from .background import Background
from .classify.classifier import Classifier
from .errors import AdapterUnavailable
from .policy import RouteInForce, ServableVersion, Snapshot
from .residency import Residency
from .watcher import Watcher

RETRY_SECONDS = 10.0
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
    retry: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> int | None:
        return self.state.live if self.state.enabled else None

    @property
    def kept_warm(self) -> list[int]:
        """The live version and the one a rollback would bring back."""
        return [number for number in (self.state.live, self.state.previous) if number is not None]

    def note(self, event: Event) -> None:
        """Remember which versions were rolled back from: they must not answer another moment."""
        left = event.payload.get("from")
        if event.kind == "rolled_back" and isinstance(left, int):
            self.dropped.add(left)
        if event.kind in ("promoted", "rolled_back") and event.number is not None:
            self.dropped.discard(event.number)


class Catalog:
    """Lives on the gateway's event loop; only the watcher runs beside it. `snapshot` may be read at any time."""

    def __init__(
        self, journal: Journal, store: Store, backend: Backend, load_classifier: LoadClassifier, gateway_id: str
    ) -> None:
        self._journal = journal
        self._store = store
        self._load_classifier = load_classifier
        self._background = Background()
        self._residency = Residency(store, backend, self._background, self._is_kept)
        self._routes: dict[str, _Route] = {}
        self._watcher: Watcher | None = None
        self._heartbeat = GatewayRow(gateway_id, 0.0, 0, {})
        self._wanted_classifier: str | None = None
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

    async def settled(self, timeout_seconds: float | None = None) -> None:
        """Wait until what is being warmed or loaded has come to an end, well or not, or the time is over."""
        await self._background.settled(timeout_seconds)

    async def stop(self) -> None:
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)
        await self._background.stop()

    @property
    def stale_seconds(self) -> float:
        """How long the registry has not answered, 0 while it does."""
        return self._watcher.stale_seconds if self._watcher else 0.0

    @property
    def problems(self) -> dict[str, str]:
        """Routes that are not as wanted, and why."""
        return {name: route.problem for name, route in self._routes.items() if route.problem}

    @property
    def warming(self) -> list[str]:
        """What is wanted and on its way, but not in force yet: routes, and the classifier."""
        routes = [
            name for name, route in self._routes.items() if route.in_force != route.wanted and route.problem is None
        ]
        current = self.classifier.digest if self.classifier else None
        late = current != self._wanted_classifier and self.classifier_problem is None
        return [*routes, "the classifier"] if late else routes

    async def ensure_resident(self, route: str, number: int, *, timeout_seconds: float) -> None:
        """Load a version asked for by number where it is not resident; raises `AdapterUnavailable`."""
        await self._residency.pin(self._routes[route].versions[number], timeout_seconds=timeout_seconds)

    def warm_again(self, route: str) -> None:
        """Bring a route's versions in again that the engine has lost on its own, unless that is under way already."""
        found = self._routes[route]
        if found.retry is None and (found.warming is None or found.warming.done()):
            self._warm(found)

    # -- following the registry -----------------------------------------------------------------------------------

    def _apply(self, view: View) -> None:
        versions: defaultdict[str, dict[int, AdapterVersion]] = defaultdict(dict)
        events: defaultdict[str | None, list[Event]] = defaultdict(list)
        for version in view.versions:
            versions[version.route][version.number] = version
        for event in view.events:
            events[event.route].append(event)
        for state in view.routes:
            self._learn(state, versions[state.name], events[state.name])
        changed = [self._routes[state.name] for state in view.routes]
        self._publish(view.serial, changed)
        for route in changed:
            self._warm(route)
        if view.live_classifier != self._wanted_classifier:
            self._wanted_classifier = view.live_classifier
            self._swap_classifier()

    def _learn(self, state: RouteState, versions: Mapping[int, AdapterVersion], events: Sequence[Event]) -> None:
        """`events` are those of this route since the last view, at least one."""
        route = self._routes.setdefault(state.name, _Route(state, versions, 0))
        before, kept = route.wanted, route.kept_warm
        route.state, route.versions, route.wanted_serial = state, versions, events[-1].serial
        for event in events:
            route.note(event)
        if route.wanted != before:
            route.problem = None
        self._settle(route)
        for number in set(kept) - set(route.kept_warm):
            self._residency.release(versions[number])

    def _settle(self, route: _Route) -> None:
        """Put in force what may answer now; what is wanted, if it is resident, at once."""
        wanted, before = route.wanted, route.in_force
        if wanted is None or self._residency.has(route.versions[wanted]):
            route.in_force, route.serial, route.problem = wanted, route.wanted_serial, None
        elif route.in_force in route.dropped | route.state.retired:
            route.in_force = None
        if before is not None and before != route.in_force:
            self._residency.release(route.versions[before])

    def _is_kept(self, version: AdapterVersion) -> bool:
        route = self._routes[version.route]
        return version.number in (*route.kept_warm, route.in_force)

    def _publish(self, serial: int, changed: Iterable[_Route] = ()) -> None:
        """Swap the snapshot and tell the fleet."""
        routes: dict[str, _Route] = {route.state.name: route for route in changed}
        seen = {name: _as_policy_sees(route) for name, route in routes.items()}
        told = {name: _as_fleet_sees(route) for name, route in routes.items()}
        digest = self.classifier.digest if self.classifier else None
        self.snapshot = replace(
            self.snapshot, serial=serial, routes={**self.snapshot.routes, **seen}, classifier_digest=digest
        )
        self._heartbeat = replace(
            self._heartbeat, serial=serial, routes={**self._heartbeat.routes, **told}, classifier_digest=digest
        )
        if self._watcher is not None:
            self._watcher.beat_now()

    def _beat(self) -> GatewayRow:
        return replace(self._heartbeat, last_seen=time.time())

    # -- warming --------------------------------------------------------------------------------------------------

    def _warm(self, route: _Route) -> None:
        """Follow the route's state as it is now. What an older state began to load does not hold this one up."""
        if route.warming is not None:
            route.warming.cancel()
        if route.retry is not None:
            route.retry.cancel()
            route.retry = None
        if not all(self._residency.has(route.versions[number]) for number in route.kept_warm):
            route.warming = self._background.spawn(self._warm_route(route))

    async def _warm_route(self, route: _Route) -> None:
        """Load the live version, then the one before it; later again what cannot be brought in."""
        failed = False
        for number in route.kept_warm:
            version = route.versions[number]
            try:
                await self._residency.bring_in(version)
            except AdapterUnavailable as error:
                failed = True
                log.error("%s could not be brought in: %s", version.ref, error.message)
                if number == route.wanted:
                    route.problem = error.message
            self._settle(route)
            self._publish(self.snapshot.serial, [route])
        if failed:
            route.retry = self._background.later(RETRY_SECONDS, self._warm, route)

    # -- the classifier -------------------------------------------------------------------------------------------

    def _swap_classifier(self) -> None:
        self._background.spawn(self._follow_classifier(self._wanted_classifier))

    async def _follow_classifier(self, digest: str | None) -> None:
        """Put the wanted classifier in force; the old one stays, and it is tried again, where it cannot be read."""
        found, problem = None, None
        try:
            if digest is not None:
                found = await asyncio.to_thread(self._read_classifier, digest)
        except (BranchlineError, OSError) as error:
            problem = error.message if isinstance(error, BranchlineError) else f"cannot be read: {error.strerror}"
        if digest != self._wanted_classifier:
            return  # the registry moved on while this one was read
        self.classifier_problem = problem
        if problem is None:
            self.classifier = found
        else:
            log.error("classifier %s could not be brought in: %s", str(digest)[:16], problem)
            self._background.later(RETRY_SECONDS, self._retry_classifier, digest)
        self._publish(self.snapshot.serial)

    def _retry_classifier(self, digest: str | None) -> None:
        if digest == self._wanted_classifier:
            self._swap_classifier()

    def _read_classifier(self, digest: str) -> Classifier:
        return self._load_classifier(self._store.classifier_folder(digest), digest)


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
        # Read by itself: a key that a newer Branchline wrote must not keep a disable from taking effect here.
        on_disabled="error" if route.state.policy.get("on_disabled") == "error" else "base",
        wanted=route.wanted,
        in_force=route.in_force,
        serial=route.serial,
        versions=versions,
    )


def _as_fleet_sees(route: _Route) -> InForce:
    version = route.versions.get(route.in_force or 0)
    return InForce(route.serial, version.engine_name if version else None, route.problem)
