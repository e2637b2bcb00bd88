"""What a request reads of the gateway: what is in force, and how to have a version brought in. A Protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from ..classify.judge import Judge
from ..policy import Snapshot
from ..types import EngineStatus


class Standing(Protocol):
    """Kept by the catalog, which follows the registry, and by a worker's copy of it. Lives on one event loop."""

    @property
    def snapshot(self) -> Snapshot:
        """What decisions depend on. May be read at any time."""

    @property
    def judge(self) -> Judge:
        """What decides where an `auto` request goes."""

    @property
    def stale_seconds(self) -> float:
        """How long the registry has not answered, 0 while it does."""

    @property
    def problems(self) -> Mapping[str, str]:
        """Routes that are not as wanted, and why."""

    @property
    def warming(self) -> Sequence[str]:
        """What is wanted and on its way, but not in force yet: routes, the classifier, the exemplars."""

    @property
    def classifier_problem(self) -> str | None:
        """Why the classifier or the exemplars in force are not those wanted."""

    @property
    def engines(self) -> Sequence[EngineStatus]:
        """The engine processes that answer."""

    async def ensure_resident(self, route: str, number: int, *, timeout_seconds: float) -> None:
        """Load a version asked for by number where it is not resident; raises `AdapterUnavailable`."""

    async def until_warm(self, route: str, *, timeout_seconds: float) -> None:
        """Bring in what should answer for `route` and wait for it, at most `timeout_seconds`.

        Returns early where the load fails, and where the route needs it no longer: the snapshot says what holds now.
        The load goes on when nobody waits any more. With 0 seconds it only begins.
        """
