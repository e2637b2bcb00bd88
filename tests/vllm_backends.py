"""A vLLM backend over programmable engines: for tests of what the gateway makes of engines' behaviour."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.probes import Probes
from adapters.types import AdapterVersion, Manifest, RouteName
from router.backends.vllm.backend import VllmBackend
from router.backends.vllm.engines import external_backend
from router.backends.vllm.rhythm import Rhythm
from router.types import Call, EngineStatus
from tests.programmable_engine import BASE_ID, DEADLINE, FINGERPRINT, ProgrammableEngine, engines

# Looks all the time, and is patient with all that a test is not about.
CALM = Rhythm(look_seconds=0.01, identify_every=1, quiet_seconds=600.0, stall_seconds=600.0, retry_seconds=0.01)
STORE = "/mnt/store"


@dataclass(frozen=True, slots=True)
class Running:
    """A started backend and the engines behind it, in order."""

    backend: VllmBackend
    engines: Sequence[ProgrammableEngine]

    @property
    def first(self) -> ProgrammableEngine:
        return self.engines[0]

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until a change of an engine's state makes `holds` true."""
        async with asyncio.timeout(DEADLINE):
            while not holds():
                await self.backend.until_changed()

    def name(self, engine: ProgrammableEngine) -> str:
        return engine.url.removeprefix("http://")

    def status(self, engine: ProgrammableEngine | None = None) -> EngineStatus:
        name = self.name(engine or self.first)
        return next(status for status in self.backend.engines if status.name == name)

    async def load(self, *versions: AdapterVersion) -> None:
        for one in versions:
            await self.backend.load(one, Path("unused"), Probes(("a text",)))


Scenario = Callable[[Running], Awaitable[None]]


def check(scenario: Scenario, *programmable: ProgrammableEngine, **rhythm: float) -> None:
    """Run `scenario` with all engines up (one healthy engine, unless others are given)."""

    async def run() -> None:
        async with (
            engines(*(programmable or (ProgrammableEngine(),))) as started,
            serving(*started, **rhythm) as backend,
        ):
            running = Running(backend, started)
            await running.until(lambda: all(status.state != "starting" for status in backend.engines))
            await scenario(running)

    asyncio.run(run())


async def taken(running: Running) -> tuple[ProgrammableEngine, ProgrammableEngine]:
    """The engine of two that has the one call, and the other."""
    looking = [asyncio.ensure_future(one.until(lambda one=one: len(one.calls) == 1)) for one in running.engines]  # type: ignore[misc]
    await asyncio.wait(looking, return_when=asyncio.FIRST_COMPLETED)
    for one in looking:
        one.cancel()
    first, second = sorted(running.engines, key=lambda engine: -len(engine.calls))
    return first, second


@asynccontextmanager
async def serving(*programmable: ProgrammableEngine, **rhythm: float) -> AsyncIterator[VllmBackend]:
    """A backend over engines that listen."""
    backend = backend_over(*[engine.url for engine in programmable], **rhythm)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.stop()


def backend_over(*urls: str, **rhythm: float) -> VllmBackend:
    return external_backend(
        urls,
        "k",
        base_id=BASE_ID,
        engine_store=STORE,
        start_seconds=DEADLINE,
        rhythm=replace(CALM, **rhythm),  # type: ignore[arg-type]
    )


def version(number: int = 1, route: str = "sql") -> AdapterVersion:
    """A version whose digest is its number."""
    digest = f"{number:064x}"[::-1]
    manifest = Manifest(digest, {}, 1, BASE_ID, FINGERPRINT, 4, 8.0, ("q_proj",))
    return AdapterVersion(RouteName(route), number, manifest, "2026-01-01T00:00:00+00:00")


def chat(name: str = BASE_ID, **body: object) -> Call:
    document = {"messages": [{"role": "user", "content": "hello"}], **body}
    return Call("chat/completions", name, document, stream=body.get("stream") is True, request_id="r-1")
