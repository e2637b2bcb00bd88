"""Looks after one engine: is it healthy, is it the one it was, does its core still answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, Protocol

from ...errors import EngineFailed, EngineUnavailable, RouterError
from .client import Address, EngineSilent
from .identity import Identity, identify, work_done
from .replica import Replica
from .standstill import Standstill

HANGS = "it accepts requests and answers none"
log = logging.getLogger("branchline.vllm")


class Keeper(Protocol):
    """Who starts an engine of ours, and starts it again when it ends."""

    @property
    def state(self) -> Literal["starting", "up", "down"]:
        """`up` once this start has answered a request."""

    @property
    def problem(self) -> str | None:
        """Why it is not up."""

    def restart(self, why: str) -> None:
        """End this start at once and begin another."""


class Watch:
    """Drives one `Replica`. `accept` says what is wrong with an identity, for this gateway, or `None`.

    `keeper` is `None` where somebody else runs the engine.
    """

    def __init__(
        self,
        replica: Replica,
        address: Address,
        base_id: str,
        accept: Callable[[Identity], str | None],
        keeper: Keeper | None = None,
    ) -> None:
        self._replica = replica
        self._address = address
        self._base_id = base_id
        self._accept = accept
        self._keeper = keeper
        self._rhythm = replica.rhythm
        self._wake = asyncio.Event()
        self._generation = address.generation
        self._looks = 0
        self._misses = 0
        self._hangs = False
        self._standstill = Standstill()
        self._core_check: asyncio.Task[None] | None = None

    def wake(self) -> None:
        """Look now, and closely: somebody saw something."""
        self._looks = 0
        self._wake.set()

    async def run(self) -> None:
        """Look for as long as nobody cancels it."""
        try:
            while True:
                try:
                    await self.look()
                except Exception:
                    log.exception("the health check of %s failed", self._replica.name)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._rhythm.look_seconds):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            if self._core_check is not None:
                self._core_check.cancel()

    async def look(self) -> None:
        """One health check, and what follows from it."""
        if self._address.generation != self._generation:
            self._generation = self._address.generation
            self._misses, self._hangs = 0, False
            self._replica.forget_all()
        if self._keeper is not None and self._keeper.state != "up":
            self._replica.went(self._keeper.state, self._keeper.problem)
        else:
            await self._look_at_health()
            await self._look_at_work()
            self._look_at_core()

    async def _look_at_health(self) -> None:
        began = asyncio.get_running_loop().time()
        try:
            status, _ = await self._replica.client.get("/health", seconds=self._rhythm.health_seconds)
        except EngineUnavailable:
            self._replica.went("down", "it cannot be reached")
        except EngineFailed:
            self._missed(began)
        else:
            await self._answered(status)

    async def _answered(self, status: int) -> None:
        if status in (401, 403):
            self._replica.went("down", "it refuses Branchline's key")
        elif status == 503:
            self._replica.went("draining", "it answers 503 to /health")
        elif status != 200:
            self._replica.went("down", f"it answers {status} to /health")
        elif self._replica.answers and self._looks % self._rhythm.identify_every:
            self._misses = 0
            self._looks += 1
        else:
            await self._look_closely()

    async def _look_closely(self) -> None:
        """Who is it? Only then does it get calls."""
        began, hung = asyncio.get_running_loop().time(), self._hangs
        try:
            if hung:
                await self._one_token(self._rhythm.core_seconds)
            identity = await identify(self._replica.client, self._base_id, seconds=self._rhythm.health_seconds)
        except EngineSilent:
            if not self._hangs:
                self._missed(began)
            return
        except RouterError as error:
            self._replica.went("down", error.message)
            return
        if (self._hangs and not hung) or self._address.generation != self._generation:
            return  # this is not what was looked at
        problem = self._accept(identity)
        if problem is not None:
            self._replica.went("down", problem)
            return
        self._hangs = False
        self._misses = 0
        self._looks = 1
        self._replica.came_up(identity)

    def _missed(self, began: float) -> None:
        """No answer to a health check; an engine that sends tokens meanwhile is only busy."""
        if self._replica.traffic.heard_at >= began and self._replica.traffic.outstanding:
            self._misses = 0
            return
        self._misses += 1
        if self._misses >= self._rhythm.misses:
            self._replica.went("down", "it does not answer health checks", end_streams=True)

    async def _look_at_work(self) -> None:
        """Does it do anything for the calls that wait? vLLM may stand still for a minute, and then go on."""
        if not self._is_quiet():
            self._standstill.forget()
            return
        with suppress(EngineFailed):  # it cannot be asked, which the next health check sees too
            work = await work_done(self._replica.client, seconds=self._rhythm.health_seconds)
            still = self._standstill.seconds(work, asyncio.get_running_loop().time())
            if still >= self._rhythm.still_seconds and self._is_quiet():
                self._replica.stall()

    def _is_quiet(self) -> bool:
        traffic = self._replica.traffic
        silence = asyncio.get_running_loop().time() - traffic.heard_at
        return self._replica.answers and traffic.waiting > 0 and silence >= self._rhythm.quiet_seconds

    def _look_at_core(self) -> None:
        """vLLM says that it is healthy while its core hangs: where nothing comes back, ask for a token."""
        traffic = self._replica.traffic
        silence = asyncio.get_running_loop().time() - traffic.heard_at
        checked = self._core_check is None or self._core_check.done()
        silent = traffic.outstanding and not self._hangs and silence >= self._rhythm.stall_seconds
        if checked and (silent or self._replica.stalled):
            self._core_check = asyncio.create_task(self._check_core())

    async def _check_core(self) -> None:
        traffic, seconds = self._replica.traffic, self._rhythm.health_seconds
        began = asyncio.get_running_loop().time()
        early = max(0.0, self._rhythm.stall_seconds - (began - traffic.heard_at))
        try:
            before = await work_done(self._replica.client, seconds=seconds)
            try:
                await self._one_token(early + self._rhythm.core_seconds)
            except EngineSilent:
                after = await work_done(self._replica.client, seconds=seconds)
                if after == before and traffic.heard_at < began:
                    self._core_hangs()
                    return
        except EngineUnavailable:
            return  # the next health check sees it too
        except RouterError:
            pass  # it answered, whatever it said
        traffic.hear()
        self._replica.moves()

    def _core_hangs(self) -> None:
        self._hangs = True
        self._replica.went("down", HANGS, end_streams=True)
        if self._keeper is not None:
            self._keeper.restart("it hung")

    async def _one_token(self, seconds: float) -> None:
        body = {"model": self._base_id, "prompt": "Hello", "max_tokens": 1}
        await self._replica.client.ask("/v1/completions", body, seconds=seconds, request_id="branchline-core")
