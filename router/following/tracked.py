"""One route as this gateway follows it: what the registry wants, and how far this gateway has come."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

from adapters.policy import MAX_COLD_WAIT_MS
from adapters.types import AdapterVersion, Event, InForce, RouteState

from ..policy import RouteInForce, ServableVersion


@dataclass(slots=True, eq=False)
class TrackedRoute:
    """`in_force` is the version that answers, `None` for the base. `dropped` may not answer another moment, `failed`
    could not be brought in and waits for its next try. `news` is set when any of this has changed.
    """

    state: RouteState
    versions: Mapping[int, AdapterVersion]
    wanted_serial: int
    in_force: int | None = None
    serial: int = 0
    problem: str | None = None
    dropped: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    warming: asyncio.Task[None] | None = None
    retry: asyncio.TimerHandle | None = None
    retries: int = 0
    news: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def wanted(self) -> int | None:
        return self.state.live if self.state.enabled else None

    @property
    def kept_warm(self) -> list[int]:
        """The live version and the one a rollback would bring back."""
        return [number for number in (self.state.live, self.state.previous) if number is not None]

    @property
    def answering(self) -> int | None:
        """What answers, or would if the engine held it: what a request may wait for."""
        return self.wanted if self.in_force is None else self.in_force

    def note(self, event: Event) -> None:
        """Remember which versions were rolled back from: they must not answer another moment."""
        left = event.payload.get("from")
        if event.kind == "rolled_back" and isinstance(left, int):
            self.dropped.add(left)
        if event.kind in ("promoted", "rolled_back") and event.number is not None:
            self.dropped.discard(event.number)

    def tell(self) -> None:
        """Wake who waits for news of this route."""
        self.news.set()
        self.news = asyncio.Event()

    def as_policy_sees(self) -> RouteInForce:
        state = self.state
        versions = {
            number: ServableVersion(number, version.engine_name, number in state.ever_live, number in state.retired)
            for number, version in self.versions.items()
        }
        # Keys are read one by one: one that a newer Branchline wrote must not keep a disable from taking effect here.
        return RouteInForce(
            name=state.name,
            enabled=state.enabled,
            on_disabled="error" if state.policy.get("on_disabled") == "error" else "base",
            wanted=self.wanted,
            in_force=self.in_force,
            serial=self.serial,
            versions=versions,
            cold_wait_ms=_milliseconds(state.policy.get("cold_wait_ms")),
        )

    def as_fleet_sees(self) -> InForce:
        version = self.versions.get(self.in_force or 0)
        return InForce(self.serial, version.engine_name if version else None, self.problem)


def _milliseconds(value: object) -> int:
    return value if isinstance(value, int) and 0 <= value <= MAX_COLD_WAIT_MS else 0
