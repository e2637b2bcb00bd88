"""The engines of one gateway: which one takes a call, another try where one failed, and who still has to load what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from adapters.errors import BranchlineError

from ...background import Background
from ...errors import (
    AdapterUnavailable,
    NotApplied,
)
from ...types import Call, Reply
from .answers import UnknownName
from .replica import Held, Replica
from .spread import Spread

log = logging.getLogger("branchline.vllm")


class Pool(Spread[Held]):
    """Lives on one event loop. Loads what is held wherever it can be."""

    def __init__(self, base_id: str, *, retry_seconds: float) -> None:
        super().__init__(base_id)
        self._retry_seconds = retry_seconds
        self._loads: dict[tuple[str, str], asyncio.Task[BranchlineError | None]] = {}
        self._catching_up: set[str] = set()
        self._caught_up: dict[str, int] = {}  # the start of each engine that holds all it should
        self._background = Background()
        self._changed = asyncio.Event()

    async def load(self, held: Held) -> None:
        """Load and prove on all engines that are up, beside each other; those that come up later follow by themselves.

        Raises `NotApplied` where the proof fails on any of them, and `AdapterUnavailable` where it succeeds on none.
        """
        up = [replica for replica in self.replicas if replica.state == "up"]
        problems = await asyncio.gather(*[self._load_on(replica, held) for replica in up])
        wrong = next((problem for problem in problems if isinstance(problem, NotApplied)), None)
        if wrong is not None:
            self.forget(held.name)
            for replica in self.replicas:
                replica.refuse(held.name)
            raise wrong
        if not any(replica.has(held.name) for replica in up):
            found = [problem.message for problem in problems if problem is not None]
            why = "; ".join(dict.fromkeys(found)) or "no engine is up"
            raise AdapterUnavailable(f"{held.name} cannot be loaded: {why}")
        self._held[held.name] = held
        self._held.move_to_end(held.name)
        for replica in self.replicas:
            if not replica.has(held.name):
                self._lacks_something(replica)

    @property
    def held(self) -> list[str]:
        """The engine names of the versions that shall be resident, the most recently used one last."""
        return list(self._held)

    async def lacks(self, replica: Replica, engine_name: str) -> None:
        """Another process was told by this engine that it does not have the version: have it loaded there again.

        Returns at once for an engine with our plugin; else raises what the load raises.
        """
        replica.lost(engine_name)
        held = self._held.get(engine_name)
        if held is None or not replica.is_plain:
            self._lacks_something(replica)
        elif (problem := await self._load_on(replica, held)) is not None:
            raise problem

    def used(self, replica: Replica, engine_names: Iterable[str]) -> None:
        """Another process used these versions there, the most recently used one last."""
        for name in engine_names:
            replica.used(name)
            if name in self._held:
                self._held.move_to_end(name)

    def forget(self, engine_name: str) -> None:
        """Calls for it are refused from now on. No engine is asked to unload anything."""
        self._held.pop(engine_name, None)

    def changed(self, replica: Replica) -> None:
        """Something happened to `replica`: whoever waits looks again, and what it lacks is loaded."""
        self._changed.set()
        self._changed = asyncio.Event()
        self._leave_the_stalled()
        behind = replica.state == "up" and self._caught_up.get(replica.name) != replica.starts
        if behind and replica.name not in self._catching_up:
            self._catching_up.add(replica.name)
            self._background.spawn(self._catch_up(replica))

    async def until_changed(self) -> None:
        await self._changed.wait()

    async def stop(self) -> None:
        """End all loads."""
        self._held.clear()
        await self._background.stop()

    async def _open_on(self, replica: Replica, call: Call, *, stays: bool) -> Reply:
        try:
            return await replica.open(call, stays=stays)
        except UnknownName:
            held = self._held.get(call.engine_name)
            if not replica.is_plain or held is None:
                self._lacks_something(replica)
                raise
        problem = await self._load_on(replica, held)  # it restarted unseen
        if problem is not None:
            raise problem
        return await replica.open(call, stays=stays)

    async def _load_on(self, replica: Replica, held: Held) -> BranchlineError | None:
        """The load goes on where who waits for it is cancelled: a load cut short leaves a second one in vLLM."""
        key = replica.name, held.name
        if key not in self._loads:
            self._loads[key] = self._background.spawn(self._try_to_load(replica, held))
        task = self._loads[key]
        await asyncio.wait({task})
        return AdapterUnavailable("the gateway stops") if task.cancelled() else task.result()

    async def _try_to_load(self, replica: Replica, held: Held) -> BranchlineError | None:
        try:
            await replica.load(held)
        except BranchlineError as error:
            log.warning("%s: %s", replica.name, error.message)
            return error
        finally:
            del self._loads[replica.name, held.name]
        return None

    def _lacks_something(self, replica: Replica) -> None:
        self._caught_up.pop(replica.name, None)
        self.changed(replica)

    async def _catch_up(self, replica: Replica) -> None:
        """Load what is held and missing here, the most recently used first, as many as the engine can keep."""
        start, failed = replica.starts, False
        self._caught_up[replica.name] = start
        try:
            for name in self._worth_holding(replica):
                held = self._held.get(name)
                if held is not None and replica.wants(name):
                    failed |= await self._load_on(replica, held) is not None
        finally:
            self._catching_up.discard(replica.name)
        if failed:
            self._background.later(self._retry_seconds, self._lacks_something, replica)
        else:
            self.changed(replica)

    def _worth_holding(self, replica: Replica) -> list[str]:
        room = replica.identity.max_cpu_loras if replica.identity else None
        return list(reversed(self._held))[:room]
