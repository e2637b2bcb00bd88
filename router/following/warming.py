"""In which order versions are brought into the engine: what changed or is asked for at once, a start's backlog behind.

An engine may have less room than there are routes: the backlog ends where it is full, and the rest comes on demand.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress

from ..background import Background
from ..errors import AdapterUnavailable
from .residency import Residency
from .tracked import TrackedRoute

BACKLOG_WORKERS = 2
DEMANDS_AT_ONCE = 4  # a burst of requests for cold routes must not fill the engine with proofs
RETRY_SECONDS = 10.0
LONGEST_RETRY_SECONDS = 60.0
log = logging.getLogger("branchline.warming")


class Warming:
    """Lives on the gateway's event loop. `moved` is called when a version of a route has come in, or could not."""

    def __init__(self, residency: Residency, background: Background, moved: Callable[[TrackedRoute], None]) -> None:
        self._residency = residency
        self._background = background
        self._moved = moved
        self._backlog: deque[tuple[TrackedRoute, int]] = deque()
        self._queued: set[str] = set()  # engine names in the backlog
        self._coming: set[str] = set()  # engine names being brought in
        self._demands = asyncio.Semaphore(DEMANDS_AT_ONCE)

    def begin(self, routes: Iterable[TrackedRoute], capacity: int | None) -> None:
        """Work off what a gateway finds at its start: live versions first, of these what changed most recently."""
        newest = sorted(routes, key=lambda route: (not route.state.enabled, -route.wanted_serial))
        live = [(route, route.state.live) for route in newest]
        previous = [(route, route.state.previous) for route in newest]
        found = [(route, number) for route, number in (*live, *previous) if number is not None]
        self._backlog.extend(found[:capacity])
        self._queued = {route.versions[number].engine_name for route, number in self._backlog}
        for _ in range(min(BACKLOG_WORKERS, len(self._backlog))):
            self._background.spawn(self._work_off())

    def follow(self, route: TrackedRoute) -> None:
        """Follow the route's state as it is now. What an older state began to load does not hold this one up."""
        route.retries = 0
        self._follow(route)

    def _follow(self, route: TrackedRoute) -> None:
        if route.warming is not None:
            route.warming.cancel()
        self._forget_retry(route)
        if not all(self._residency.has(route.versions[number]) for number in route.kept_warm):
            route.warming = self._background.spawn(self._bring_all(route))

    def demand(self, route: TrackedRoute) -> bool:
        """Begin to bring in what should answer for `route`; whether it is on its way."""
        number = route.answering
        if number is None or number in route.failed:
            return False
        version = route.versions[number]
        if self._residency.has(version):
            return False
        if version.engine_name not in self._coming:
            self._coming.add(version.engine_name)
            self._background.spawn(self._bring_demanded(route, number))
        return True

    async def until_warm(self, route: TrackedRoute, seconds: float) -> None:
        """`demand`, and wait; ends early where the load fails or the route needs it no longer. The load goes on."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.demand(route):
                    await route.news.wait()

    def is_coming(self, route: TrackedRoute) -> bool:
        """Whether something is under way, or in the backlog, to bring in what is wanted."""
        under_way = route.warming is not None and not route.warming.done()
        wanted = route.versions.get(route.wanted or 0)
        name = wanted.engine_name if wanted else None
        return under_way or name in self._queued or name in self._coming

    async def _work_off(self) -> None:
        while self._backlog:
            route, number = self._backlog.popleft()
            self._queued.discard(route.versions[number].engine_name)
            if number in route.kept_warm:
                await self._bring(route, number)

    async def _bring_demanded(self, route: TrackedRoute, number: int) -> None:
        async with self._demands:
            if number == route.answering:
                await self._bring(route, number)
            else:
                self._coming.discard(route.versions[number].engine_name)

    async def _bring_all(self, route: TrackedRoute) -> None:
        """The live version, then the one before it."""
        for number in route.kept_warm:
            await self._bring(route, number)

    async def _bring(self, route: TrackedRoute, number: int) -> None:
        """Bring one version in; what cannot be brought in is tried again, each time after twice as long."""
        version = route.versions[number]
        self._coming.add(version.engine_name)
        try:
            await self._residency.bring_in(version)
        except AdapterUnavailable as error:
            log.error("%s could not be brought in: %s", version.ref, error.message)
            route.failed.add(number)
            if number == route.wanted:
                route.problem = error.message
            if route.retry is None:
                pause = min(RETRY_SECONDS * 2**route.retries, LONGEST_RETRY_SECONDS)
                route.retries += 1
                route.retry = self._background.later(pause, self._try_again, route)
        finally:
            self._coming.discard(version.engine_name)
        self._moved(route)

    def _try_again(self, route: TrackedRoute) -> None:
        self._follow(route)
        self._moved(route)  # an engine may have come back with what it lost

    def _forget_retry(self, route: TrackedRoute) -> None:
        route.failed.clear()
        if route.retry is not None:
            route.retry.cancel()
            route.retry = None
