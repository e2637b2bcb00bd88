"""vLLM engines behind the contract of `Backend`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import NotFound
from adapters.probes import NO_PROBES, Probes
from adapters.types import AdapterVersion

from ...errors import EngineFailed, EngineUnavailable
from ...types import Call, EngineStatus, Reply
from .client import Address, EngineClient
from .identity import Identity
from .pool import Pool
from .replica import Held, Replica
from .rhythm import Rhythm
from .told import ToldEngines, Work, WorkOfEngines
from .watch import Keeper, Watch

log = logging.getLogger("branchline.vllm")


@dataclass(frozen=True, slots=True)
class Engine:
    """One engine to serve from. `name` is what operators call it. Where Branchline runs it: its `keeper`, and how to
    `start` and `stop` it. `start` returns once the engine answers, and raises `EngineFailed`.
    """

    name: str
    address: Address
    keeper: Keeper | None = None
    start: Callable[[], Awaitable[None]] | None = None
    stop: Callable[[], Awaitable[None]] | None = None


class VllmBackend:
    """Keeps the contract of `Backend` over one or several engines that serve the same base.

    `base_fingerprint` is the base's where it is known; else the first engine that tells decides, and an engine with
    another base is down. `engine_store` is the store's path as engines without our plugin see it. `start` waits up to
    `start_seconds` for a first engine.
    """

    def __init__(
        self,
        base_id: str,
        engines: Sequence[Engine],
        *,
        base_fingerprint: str | None = None,
        engine_store: str | None = None,
        start_seconds: float = 120.0,
        rhythm: Rhythm | None = None,
    ) -> None:
        self._base_id = base_id
        self._engines = tuple(engines)
        self._expected = base_fingerprint
        self._base_fingerprint = base_fingerprint
        self._engine_store = engine_store
        self._start_seconds = start_seconds
        self._rhythm = rhythm or Rhythm()
        self._pool = Pool(base_id, retry_seconds=self._rhythm.retry_seconds)
        self._watching: list[asyncio.Task[None]] = []
        self._watches: list[Watch] = []
        self._up = False

    @property
    def base_id(self) -> str:
        return self._base_id

    @property
    def base_fingerprint(self) -> str | None:
        return self._base_fingerprint

    @property
    def capacity(self) -> int | None:
        known = [one.identity.max_cpu_loras for one in self._pool.replicas if one.identity is not None]
        return min([count for count in known if count is not None], default=None)

    @property
    def engines(self) -> list[EngineStatus]:
        if not self._pool.replicas:
            return [EngineStatus(engine.name, "down") for engine in self._engines]
        return [replica.status for replica in self._pool.replicas]

    @property
    def running(self) -> int:
        """How many calls are being worked on."""
        return sum(replica.traffic.outstanding for replica in self._pool.replicas)

    async def start(self) -> None:
        if self._up:
            return
        self._pool = Pool(self._base_id, retry_seconds=self._rhythm.retry_seconds)
        try:
            await asyncio.gather(*[engine.start() for engine in self._engines if engine.start is not None])
            self._pool.replicas = [self._replica(engine) for engine in self._engines]
            self._watches = [self._watch(*pair) for pair in zip(self._engines, self._pool.replicas, strict=True)]
            self._watching = [asyncio.create_task(watch.run()) for watch in self._watches]
            self._up = True
            await self._until_one_is_up()
        except BaseException:
            await self.stop()
            raise
        self._base_fingerprint = self._expected

    async def stop(self) -> None:
        self._up = False
        watching, self._watching = self._watching, []
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
        for replica in self._pool.replicas:
            replica.went("down", None, end_streams=True)
        await self._pool.stop()
        for replica in self._pool.replicas:
            await replica.close()
        for engine in self._engines:
            if engine.stop is not None:
                await engine.stop()

    async def ready(self) -> bool:
        return self._up and any(replica.state == "up" for replica in self._pool.replicas)

    async def load(self, version: AdapterVersion, folder: Path, probes: Probes = NO_PROBES) -> None:
        if not self.is_resident(version.engine_name):
            await self._pool.load(Held(version, probes))

    async def unload(self, engine_name: str) -> None:
        self._pool.forget(engine_name)

    def is_resident(self, engine_name: str) -> bool:
        return self._pool.is_resident(engine_name)

    async def drain(self, name: str) -> None:
        self._named(name).drain(True)

    async def resume(self, name: str) -> None:
        self._named(name).drain(False)

    async def open(self, call: Call) -> Reply:
        if not self._up:
            raise EngineUnavailable("the engine is not running")
        return await self._pool.open(call)

    async def until_changed(self) -> None:
        """Wait for the next change of an engine's state, or of what it holds."""
        await self._pool.until_changed()

    def told(self) -> ToldEngines:
        """What other processes need to know, to open calls by themselves."""
        pairs = zip(self._engines, self._pool.replicas, strict=False)
        return ToldEngines(tuple(replica.told(engine.address) for engine, replica in pairs), tuple(self._pool.held))

    async def lacks(self, name: str, engine_name: str) -> None:
        """As `Pool.lacks`, of the engine `name`."""
        await self._pool.lacks(self._named(name), engine_name)

    def works(self, process: int, work: WorkOfEngines) -> None:
        """Another process tells what the engines do for it; an empty mapping when it is gone."""
        for replica in self._pool.replicas:
            told = work.get(replica.name, Work())
            replica.traffic.elsewhere(process, told.outstanding, told.waiting, told.heard_seconds_ago)
            self._pool.used(replica, told.used)

    def look(self) -> None:
        """Have every engine looked at now."""
        for watch in self._watches:
            watch.wake()

    def _replica(self, engine: Engine) -> Replica:
        client = EngineClient(engine.address, self._base_id, connect_seconds=self._rhythm.connect_seconds)
        return Replica(
            engine.name,
            client,
            self._base_id,
            rhythm=self._rhythm,
            on_change=self._pool.changed,
            engine_store=self._engine_store,
        )

    def _watch(self, engine: Engine, replica: Replica) -> Watch:
        return Watch(replica, engine.address, self._base_id, self._problem_of, engine.keeper)

    def _problem_of(self, identity: Identity) -> str | None:
        """What keeps an engine from serving beside the others."""
        found = identity.base_fingerprint
        if found is None or found == self._expected:
            return None
        if self._expected is None:
            self._expected = found
            return None
        return f"serves another base under the same id: fingerprint {found[:16]}, expected {self._expected[:16]}"

    async def _until_one_is_up(self) -> None:
        try:
            async with asyncio.timeout(self._start_seconds):
                while not await self.ready():
                    await self._pool.until_changed()
        except TimeoutError:
            found = "; ".join(f"{one.name}: {one.problem or one.state}" for one in self.engines)
            raise EngineFailed(
                f"no engine is up after {self._start_seconds:g} s: {found}", hint="check --engine and the engines' logs"
            ) from None

    def _named(self, name: str) -> Replica:
        for replica in self._pool.replicas:
            if replica.name == name:
                return replica
        known = ", ".join(engine.name for engine in self._engines)
        raise NotFound(f"there is no engine {name!r:.80}", hint=f"the engines are: {known}")
