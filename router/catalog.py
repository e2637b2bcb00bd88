"""What is in force: an immutable snapshot, moved towards what the registry wants, each route on its own.

Taking traffic away is applied at once. Bringing a version in is warmed and proved beside the traffic, then swapped
in for its route alone. The live version and the one before it are kept warm, as far as the engine has room.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from adapters.exemplars import exemplars_of
from adapters.journal import Journal
from adapters.probes import probes_of
from adapters.store import Store
from adapters.types import AdapterVersion, Event, GatewayRow, RouteState
from adapters.view import View

from .backends.base import Backend
from .background import Background
from .classify.classifier import Classifier
from .classify.judge import Judge
from .following.judge_building import FindEncoder, JudgeBuilder, LoadClassifier, no_encoder
from .following.judging import JudgeKeeper, Judging
from .following.residency import OnLoad, Residency, tell_nobody
from .following.tracked import TrackedRoute
from .following.warming import Warming
from .following.watcher import Watcher
from .keys.principal import KeyRing
from .policy import Snapshot
from .types import EngineStatus

Tell = Callable[[Snapshot, Sequence[str], Callable[[], None]], None]
KeepJudge = Callable[[Background, Callable[[], None]], JudgeKeeper]


def tell_nobody_else(_snapshot: Snapshot, _changed: Sequence[str], done: Callable[[], None]) -> None:
    """For a gateway of one process."""
    done()


class Catalog:
    """Lives on the gateway's event loop; only the watcher runs beside it. `snapshot` may be read at any time.

    `on_load` hears of every load of a version: its route, how it went and how many seconds it took. Where requests
    are answered elsewhere, `tell` is given each snapshot and the names of the routes that changed in it, and calls
    back once it holds there: only then the heartbeat says so; `keep_judge` makes what follows the classifier there.
    """

    def __init__(
        self,
        journal: Journal,
        store: Store,
        backend: Backend,
        load_classifier: LoadClassifier,
        gateway_id: str,
        *,
        find_encoder: FindEncoder = no_encoder,
        on_load: OnLoad = tell_nobody,
        tell: Tell = tell_nobody_else,
        keep_judge: KeepJudge | None = None,
    ) -> None:
        self._journal = journal
        self._store = store
        self._backend = backend
        self._background = Background()
        if keep_judge is None:
            builder = JudgeBuilder(partial(exemplars_of, journal), store, load_classifier, find_encoder)
            keep_judge = partial(Judging, builder)
        self._tell = tell
        self._judging = keep_judge(self._background, self._judge_swapped)
        find_probes = partial(probes_of, journal, store)
        self._residency = Residency(store, backend, self._background, find_probes, self._is_kept, on_load)
        self._warming = Warming(self._residency, self._background, self._moved)
        self._routes: dict[str, TrackedRoute] = {}
        self._watcher: Watcher | None = None
        self._heartbeat = self._acknowledged = GatewayRow(gateway_id, 0.0, 0, {})
        self.snapshot = Snapshot(0, backend.base_id, {})
        self.keys = KeyRing()

    # -- life -----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Read the registry, begin to warm what is live, and follow it from here on. Raises `RegistryUnavailable`."""
        loop = asyncio.get_running_loop()
        view = await asyncio.to_thread(self._journal.view)
        self._heartbeat = replace(
            self._heartbeat, base_id=self._backend.base_id, base_fingerprint=self._backend.base_fingerprint
        )
        self._acknowledged = self._heartbeat
        self._warming.begin(self._apply(view), self._backend.capacity)

        def hand_over(newer: View) -> None:
            loop.call_soon_threadsafe(self._follow, newer)

        self._watcher = Watcher(self._journal, hand_over, self._beat, view.serial)
        self._watcher.start()

    async def settled(self, timeout_seconds: float | None = None) -> None:
        """Wait until what is being warmed or loaded has come to an end, well or not, or the time is over."""
        await self._background.settled(timeout_seconds)

    async def stop(self) -> None:
        if self._watcher is not None:
            await asyncio.to_thread(self._watcher.stop)
        await self._background.stop()
        await self._judging.stop()

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
        """What is wanted and on its way, but not in force yet: routes, the classifier, the exemplars."""
        missing = {
            name: route
            for name, route in self._routes.items()
            if route.in_force != route.wanted and route.problem is None
        }
        return [*(name for name, route in missing.items() if self._warming.is_coming(route)), *self._judging.coming]

    @property
    def judge(self) -> Judge:
        """What decides where an `auto` request goes."""
        return self._judging.judge

    @property
    def classifier(self) -> Classifier | None:
        return self.judge.classifier

    @property
    def classifier_problem(self) -> str | None:
        """Why the classifier or the exemplars in force are not those wanted."""
        return self._judging.problem

    @property
    def engines(self) -> Sequence[EngineStatus]:
        """The engine processes that answer."""
        return self._backend.engines

    async def ensure_resident(self, route: str, number: int, *, timeout_seconds: float) -> None:
        """Load a version asked for by number where it is not resident; raises `AdapterUnavailable`."""
        await self._residency.pin(self._routes[route].versions[number], timeout_seconds=timeout_seconds)

    async def until_warm(self, route: str, *, timeout_seconds: float) -> None:
        """Bring in what should answer for `route` and wait for it, at most `timeout_seconds`.

        Returns early where the load fails, and where the route needs it no longer: the snapshot says what holds now.
        The load goes on when nobody waits any more. With 0 seconds it only begins.
        """
        await self._warming.until_warm(self._routes[route], timeout_seconds)

    # -- following the registry -----------------------------------------------------------------------------------

    def _follow(self, view: View) -> None:
        for route in self._apply(view):
            self._warming.follow(route)

    def _apply(self, view: View) -> list[TrackedRoute]:
        """Learn what changed, and put in force what can be at once; returns the routes with something to bring in."""
        versions: defaultdict[str, dict[int, AdapterVersion]] = defaultdict(dict)
        events: defaultdict[str | None, list[Event]] = defaultdict(list)
        for version in view.versions:
            versions[version.route][version.number] = version
        for event in view.events:
            events[event.route].append(event)
        moved = [
            self._routes[state.name]
            for state in view.routes
            if self._learn(state, versions[state.name], events[state.name])
        ]
        changed = [self._routes[state.name] for state in view.routes]
        if view.keys:
            self.keys = self.keys.updated(view.keys)
        self._publish(view.serial, changed)
        for route in changed:
            route.tell()
        self._judging.follow(view)
        return moved

    def _learn(self, state: RouteState, versions: Mapping[int, AdapterVersion], events: Sequence[Event]) -> bool:
        """Whether other versions are wanted now, or some that could not be brought in may be tried again.

        `events` are those of this route since the last view, at least one.
        """
        is_new = state.name not in self._routes
        route = self._routes.setdefault(state.name, TrackedRoute(state, versions, 0))
        before, kept = route.wanted, route.kept_warm
        route.dropped |= set(route.state.stack) - set(state.stack)  # a rollback may pop more than the live version
        route.state, route.versions, route.wanted_serial = state, versions, events[-1].serial
        for event in events:
            route.note(event)
        route.dropped -= {state.live}  # retiring what it was rolled back to brings a version back, too
        if route.wanted != before:
            route.problem = None
        self._settle(route)
        for number in set(kept) - set(route.kept_warm):
            self._residency.release(versions[number])
        return is_new or (route.wanted, route.kept_warm) != (before, kept) or bool(route.failed)

    def _settle(self, route: TrackedRoute) -> None:
        """Put in force what may answer now; what is wanted, if it is resident, at once."""
        wanted, before = route.wanted, route.in_force
        if wanted is None or self._residency.has(route.versions[wanted]):
            route.in_force, route.serial, route.problem = wanted, route.wanted_serial, None
        elif route.in_force in route.dropped | route.state.retired:
            route.in_force = None
        if before is not None and before != route.in_force:
            self._residency.release(route.versions[before])

    def _moved(self, route: TrackedRoute) -> None:
        """A version of `route` has come in, or could not."""
        self._settle(route)
        self._publish(self.snapshot.serial, [route])
        route.tell()

    def _is_kept(self, version: AdapterVersion) -> bool:
        route = self._routes[version.route]
        return version.number in (*route.kept_warm, route.in_force)

    def _publish(self, serial: int, changed: Iterable[TrackedRoute] = ()) -> None:
        """Swap the snapshot and tell the fleet."""
        routes: dict[str, TrackedRoute] = {route.state.name: route for route in changed}
        seen = {name: route.as_policy_sees() for name, route in routes.items()}
        told = {name: route.as_fleet_sees() for name, route in routes.items()}
        classifier, exemplars = self._judging.classifier_digest, self._judging.exemplars_digest
        self.snapshot = Snapshot(serial, self.snapshot.base_id, {**self.snapshot.routes, **seen}, classifier, exemplars)
        self._heartbeat = replace(
            self._heartbeat,
            serial=serial,
            routes={**self._heartbeat.routes, **told},
            classifier_digest=classifier,
            exemplars_digest=exemplars,
        )
        self._tell(self.snapshot, list(routes), partial(self._hold, self._heartbeat))

    def _hold(self, heartbeat: GatewayRow) -> None:
        """What `heartbeat` says holds for every request from here on."""
        self._acknowledged = heartbeat
        if self._watcher is not None:
            self._watcher.beat_now()

    def _judge_swapped(self) -> None:
        self._publish(self.snapshot.serial)

    def _beat(self) -> GatewayRow:
        return replace(self._acknowledged, last_seen=time.time())
