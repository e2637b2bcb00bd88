"""vLLM engines as a worker sees them: its calls go there directly, its parent says in which state they are.

Residency, proofs and loads are the parent's. What an engine does not have after all, the parent is told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from ...errors import AdapterUnavailable, EngineUnavailable
from ...types import Call, Reply
from .answers import UnknownName
from .client import EngineClient
from .replica import Replica
from .residents import Residents
from .rhythm import Rhythm
from .spread import Spread
from .told import ToldAddress, ToldEngine, ToldEngines, Work, WorkOfEngines

Lacks = Callable[[str, str], Awaitable[None]]


class MovingAddress:
    """Keeps the contract of `Address`: where the parent said last that the engine is."""

    def __init__(self, told: ToldAddress) -> None:
        self.told = told

    @property
    def url(self) -> str:
        return self.told.url

    @property
    def key(self) -> str | None:
        return self.told.key

    @property
    def generation(self) -> int:
        return self.told.generation


class FollowedReplica(Replica):
    """A `Replica` in the state that it is told to be in."""

    def __init__(self, told: ToldEngine, base_id: str, rhythm: Rhythm) -> None:
        self._address = MovingAddress(told.address)
        client = EngineClient(self._address, base_id, connect_seconds=rhythm.connect_seconds)
        super().__init__(told.name, client, base_id, rhythm=rhythm, on_change=lambda _: None)
        self._used: dict[str, None] = {}  # the most recently used one last

    def follow(self, told: ToldEngine) -> None:
        """Be as the parent's is."""
        if told.address.generation != self._address.generation:
            self.traffic.end(streams=False)
        self._address.told = told.address
        self.identity, self._drained = told.identity, told.drained
        if told.starts != self.starts:
            self.starts = told.starts
            self._residents = Residents()
            self._breaker.reset()
        for name in set(self._residents.names) - set(told.residents):
            self._residents.forget(name)
        for name in told.residents:
            if not self._residents.has(name):
                self._residents.add(name)
        if told.severed != self.severed:  # it may be up again by now
            self.severed = told.severed
            self.traffic.end(streams=True)
        self.went(told.state, told.problem)
        self.stalled = told.stalled

    async def open(self, call: Call, *, stays: bool = False) -> Reply:
        self._used.pop(call.engine_name, None)
        self._used[call.engine_name] = None
        return await super().open(call, stays=stays)

    def work(self) -> Work:
        """What the parent is told of it, each use once."""
        used, self._used = {**self._used, **self.traffic.busy}, {}
        heard_seconds_ago = asyncio.get_running_loop().time() - self.traffic.heard_at
        return Work(self.traffic.outstanding, self.traffic.waiting, heard_seconds_ago, tuple(used))


class FollowedEngines(Spread[None]):
    """Lives on a worker's event loop. `open` keeps the contract of `Backend.open`; `lacks` tells the parent that an
    engine does not have a version, returns when that is seen to, and raises what the load raised.
    """

    def __init__(self, base_id: str, lacks: Lacks) -> None:
        super().__init__(base_id)
        self._lacks = lacks
        self._rhythm = Rhythm()
        self._known: dict[str, FollowedReplica] = {}

    def follow(self, told: ToldEngines) -> None:
        """Learn in which state the engines are, and which versions shall be resident."""
        for one in told.engines:
            if one.name not in self._known:
                self._known[one.name] = FollowedReplica(one, self._base_id, self._rhythm)
            self._known[one.name].follow(one)
        self.replicas = tuple(self._known[one.name] for one in told.engines)
        self._held.clear()
        self._held.update(dict.fromkeys(told.held))
        self._leave_the_stalled()

    def work(self) -> WorkOfEngines:
        """What each engine does for this worker."""
        return {name: replica.work() for name, replica in self._known.items()}

    async def close(self) -> None:
        """End running calls with `EngineFailed`, and all connections."""
        for replica in self._known.values():
            await replica.close()

    async def _open_on(self, replica: Replica, call: Call, *, stays: bool) -> Reply:
        try:
            return await replica.open(call, stays=stays)
        except AdapterUnavailable as error:
            try:
                await self._lacks(replica.name, call.engine_name)
            except EngineUnavailable:
                raise error from None  # the parent is gone
            if not (isinstance(error, UnknownName) and replica.is_plain):
                raise
        return await replica.open(call, stays=stays)
