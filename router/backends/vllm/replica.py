"""One engine as the gateway sees it: its state, its calls, and the versions that this start of it holds."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from adapters.probes import Probes
from adapters.types import AdapterVersion

from ...errors import AdapterUnavailable, EngineFailed, EngineOverloaded, NotApplied
from ...types import Call, EngineState, EngineStatus, Reply
from .answers import Said, clean
from .breaker import Breaker
from .client import Address, EngineClient, EngineStalled
from .identity import Identity
from .proof import prove
from .residents import Residents
from .rhythm import Rhythm
from .told import ToldAddress, ToldEngine
from .traffic import Traffic

STANDS_STILL = "calls wait and it does nothing: others are asked first"
log = logging.getLogger("branchline.vllm")


@dataclass(frozen=True, slots=True)
class Held:
    """A version that shall be resident wherever it can be."""

    version: AdapterVersion
    probes: Probes = field(default_factory=Probes)

    @property
    def name(self) -> str:
        return self.version.engine_name


class Replica:
    """Passive: `Watch` tells it what it sees. `on_change` is called after every change of state or residency; `starts`
    counts the starts of the engine that were seen.

    `engine_store` is the store's path as this engine sees it; only an engine without our plugin needs it.
    """

    def __init__(
        self,
        name: str,
        client: EngineClient,
        base_id: str,
        *,
        rhythm: Rhythm,
        on_change: Callable[[Replica], None],
        engine_store: str | None = None,
    ) -> None:
        self.name = name
        self.client = client
        self.traffic = Traffic(client)
        self.rhythm = rhythm
        self.identity: Identity | None = None
        self._base_id = base_id
        self._engine_store = engine_store
        self._on_change = on_change
        self._state: EngineState = "starting"
        self._problem: str | None = None
        self._drained = False
        self.starts = 0
        self.severed = 0  # how often answers that had begun were ended
        self.stalled = False  # calls wait, and it does nothing
        self._residents = Residents()
        self._breaker = Breaker(first_seconds=rhythm.breaker_seconds)
        self._loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def state(self) -> EngineState:
        return "draining" if self._drained and self._state == "up" else self._state

    @property
    def answers(self) -> bool:
        """Whether it is up, drained by an operator or not."""
        return self._state == "up"

    @property
    def status(self) -> EngineStatus:
        return EngineStatus(
            self.name,
            self.state,
            outstanding=self.traffic.outstanding,
            resident=len(self._residents),
            restarts=max(0, self.starts - 1),
            problem=self._problem or self._distrust,
            base_fingerprint=self.identity.base_fingerprint if self.identity else None,
        )

    def told(self, address: Address) -> ToldEngine:
        """What another process needs to know, to open calls here by itself."""
        return ToldEngine(
            self.name,
            ToldAddress(address.url, address.key, address.generation),
            self._state,
            self._drained,
            self._problem,
            self.identity,
            self.starts,
            self.severed,
            self._residents.names,
            self.stalled,
        )

    @property
    def is_plain(self) -> bool:
        """Whether it has no plugin of ours."""
        return self.identity is not None and not self.identity.plugin

    def has(self, engine_name: str) -> bool:
        """Whether a call for `engine_name` pays no load here."""
        return engine_name == self._base_id or self._residents.has(engine_name)

    def wants(self, engine_name: str) -> bool:
        """Whether loading `engine_name` is worth a try."""
        return self.state == "up" and not (self.has(engine_name) or self._residents.is_refused(engine_name))

    def is_active(self, engine_name: str) -> bool:
        """Whether `engine_name` is among the versions this engine decodes with now."""
        return engine_name == self._base_id or self._residents.is_active(engine_name)

    def is_trusted(self) -> bool:
        """Whether it has not failed again and again just now, and does something."""
        return not self.stalled and self._breaker.allows(time.monotonic())

    async def open(self, call: Call, *, stays: bool = False) -> Reply:
        """Begin a call here; raises what `Traffic.open` raises."""
        if self.is_trusted():
            self._breaker.begin()
        self._residents.touch(call.engine_name)
        try:
            reply = await self.traffic.open(call, self._failed, stays=stays)
        except EngineStalled:
            self._breaker.abandon()
            raise
        except EngineFailed:
            self._failed()
            raise
        except (asyncio.CancelledError, EngineOverloaded):
            self._breaker.abandon()
            raise
        except AdapterUnavailable:
            self._breaker.succeed()
            self._residents.forget(call.engine_name)
            raise
        except Exception:
            self._breaker.succeed()
            raise
        self._breaker.succeed()
        return reply

    async def load(self, held: Held) -> None:
        """Make the version resident and prove it; at once where it is. One load for a name at a time.

        Raises `AdapterUnavailable`, `NotApplied`, and what else `prove` raises. Clients see it: it holds no address.
        """
        async with self._loading[held.name]:
            if self.has(held.name):
                return
            self._require_rank(held.version)
            residents = self._residents
            if self.is_plain:
                await self._register(held.version)
            try:
                await self._bring_in(held, residents)
            except NotApplied:
                residents.refuse(held.name)
                raise
            if residents is not self._residents:
                raise AdapterUnavailable(f"the engine restarted while it loaded {held.name}")
            residents.add(held.name, busy=self.traffic.busy)
        self._on_change(self)

    def used(self, engine_name: str) -> None:
        """Another process called it for the version."""
        self._residents.touch(engine_name)

    def lost(self, engine_name: str) -> None:
        """It says that it does not hold the version after all."""
        self._residents.forget(engine_name)

    def refuse(self, engine_name: str) -> None:
        """Another engine proved that the version is not applied."""
        self._residents.refuse(engine_name)

    def came_up(self, identity: Identity) -> None:
        """It answers; a new start of it holds nothing."""
        unsure = identity.started is None and self._state != "up"
        if self.identity is None or identity.started != self.identity.started or unsure:
            self.starts += 1
            self._residents = Residents(identity.max_cpu_loras, identity.max_loras)
            self._breaker.reset()
        self.identity = identity
        self._become("up", None)

    def stall(self) -> None:
        """Calls wait, and it does nothing: others are asked first, and what has not begun goes to them."""
        if not self.stalled:
            log.warning("%s stands still: %d calls wait for it", self.name, self.traffic.waiting)
            self.stalled = True
            self._on_change(self)

    def moves(self) -> None:
        """It does something after all, or anew."""
        if self.stalled:
            log.info("%s stands still no longer", self.name)
            self.stalled = False
            self._on_change(self)

    def went(self, state: EngineState, problem: str | None, *, end_streams: bool = False) -> None:
        """It does not take calls now, because of `problem`. Down: what has not begun is given up."""
        self.severed += end_streams
        if state == "down":
            self.stalled = False
            self.traffic.end(streams=end_streams)
        self._become(state, problem)

    def forget_all(self) -> None:
        """Its keeper started it anew: nothing that was known of it holds, nothing that was asked is answered."""
        self.stalled = False
        self.identity = None
        self._residents = Residents()
        self.traffic.end(streams=False)

    def drain(self, drained: bool) -> None:
        """Take no new calls, or take them again. Running ones finish."""
        self._drained = drained
        self._on_change(self)

    async def close(self) -> None:
        """End running calls with `EngineFailed`, and all connections."""
        self.went("down", None, end_streams=True)
        self._residents = Residents()
        self.identity = None
        await self.client.close()

    def _require_rank(self, version: AdapterVersion) -> None:
        most = self.identity.max_lora_rank if self.identity else None
        if most is not None and version.manifest.rank > most:
            raise AdapterUnavailable(
                f"{version.engine_name} has rank {version.manifest.rank}, the engine takes at most {most}",
                hint="start that engine with a larger max_lora_rank",
            )

    async def _bring_in(self, held: Held, residents: Residents) -> None:
        if residents.is_proved(held.name):
            await self._ask("/v1/completions", {"model": held.name, "prompt": "Hello", "max_tokens": 1})
            return
        proof = await prove(self._ask, base_id=self._base_id, engine_name=held.name, probes=held.probes)
        log.info("%s applies %s: %s", self.name, held.name, proof)

    async def _register(self, version: AdapterVersion) -> None:
        """Tell an engine without our plugin where the version lies."""
        if self._engine_store is None:
            raise AdapterUnavailable(
                "the engine has no plugin of Branchline's, and nobody said where it sees the store",
                hint="configure the store's path as that engine sees it",
            )
        path = f"{self._engine_store.rstrip('/')}/{version.route}/{version.digest}"
        body = {"lora_name": version.engine_name, "lora_path": path}
        async with self.traffic.working(version.engine_name):
            status, answer = await self.client.send("/v1/load_lora_adapter", body, seconds=self.rhythm.load_seconds)
        said = Said.parse(answer).message
        if status != 200 and "already been loaded" not in said:
            why = clean(said) or "it says nothing"
            if status in (404, 405) and "No adapter found" not in said:
                why = "it does not take adapters at run time: set VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 there"
            raise AdapterUnavailable(f"the engine cannot load {version.engine_name} ({status}): {why}")

    async def _ask(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        request_id = f"branchline-{secrets.token_hex(4)}"
        return await self.traffic.ask(path, body, seconds=self.rhythm.load_seconds, request_id=request_id)

    @property
    def _distrust(self) -> str | None:
        """Why others are asked first."""
        if self.stalled:
            return STANDS_STILL
        return None if self.is_trusted() else "its last calls failed: others are asked first"

    def _failed(self) -> None:
        self._breaker.fail(time.monotonic())

    def _become(self, state: EngineState, problem: str | None) -> None:
        if (state, problem) != (self._state, self._problem):
            log.log(logging.INFO if problem is None else logging.WARNING, "%s is %s%s", self.name, state, _why(problem))
            self._state, self._problem = state, problem
        self._on_change(self)


def _why(problem: str | None) -> str:
    return "" if problem is None else f": {json.dumps(problem)[1:-1]}"
