"""A gateway of several processes: the parent has the engine and follows the registry, its workers answer.

1. The parent binds, opens the registry and starts the engine, as a gateway of one process does.
2. Each worker is a fresh interpreter that inherits the listening socket and its ends of two pairs of sockets.
3. Over one, the parent tells it the settings, the snapshot, the keys, the classifier's digest and the exemplars.
4. It reads the classifier, builds its memory, says that it is ready, and serves once it has what all others have.
5. A change in the registry makes a new snapshot, which every worker acknowledges; then the heartbeat says so.
6. What only the parent can do is asked for over the same channel: loads, engines, facts, the metrics of all.
7. An engine that lives in the parent is called over the other pair, each call with a socket of its own.
8. A worker that dies is replaced; when the parent dies, its workers let running answers finish and end.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial

from adapters.exemplars import exemplars_of
from adapters.output import note
from adapters.registry import Registry

from ..auth import Gatekeeper
from ..backends.base import Backend
from ..backends.vllm.backend import VllmBackend
from ..backends.vllm.told import ToldEngines, WorkOfEngines
from ..catalog import Catalog
from ..decision_log import DecisionLog, keep_swept
from ..following.opening import open_classifier
from ..lifecycle import WARM_SECONDS, addresses_of, announce, gateway_id, stop_on_signals
from ..settings import Settings
from ..telemetry import Telemetry
from .agreement import Agreement
from .channel import Document
from .crew import Crew
from .judges import SharedJudging
from .messages import Facts, Hello
from .totals import render


class Parent:
    """Answers what workers ask. Lives on the parent's event loop."""

    def __init__(
        self,
        settings: Settings,
        gatekeeper: Gatekeeper,
        registry: Registry,
        engine: Backend,
        bound: Sequence[socket.socket],
    ) -> None:
        self._engine = engine
        self.telemetry = Telemetry()
        digest = gatekeeper.key_digest.hex() if gatekeeper.key_digest else None
        vllm = engine if isinstance(engine, VllmBackend) else None
        told = replace(settings, api_key=None, engine=replace(settings.engine, key=None))
        hello = Hello(0, told, engine.base_id, digest, gatekeeper.loopback, follows_engines=vllm is not None)
        self.agreement = Agreement(hello, lambda: self.catalog.keys, vllm.told if vllm is not None else ToldEngines)
        works = vllm.works if vllm is not None else _nothing
        self.crew = Crew(settings.workers, self.agreement, bound, engine, self._answer, works=works)
        self._vllm = vllm
        self.catalog = Catalog(
            registry,
            settings.home.open_store(),
            engine,
            open_classifier,
            gateway_id(),
            on_load=self.telemetry.loaded,
            tell=self.agreement.tell,
            keep_judge=partial(SharedJudging, partial(exemplars_of, registry), self.agreement),
        )

    async def _answer(self, what: str, body: Document) -> Document:
        if what == "ensure_resident":
            await self.catalog.ensure_resident(body["route"], body["number"], timeout_seconds=body["timeout_seconds"])
            return {}
        if what == "until_warm":
            await self.catalog.until_warm(body["route"], timeout_seconds=body["timeout_seconds"])
            return {}
        if what == "lacks" and self._vllm is not None:
            await self._vllm.lacks(body["engine"], body["version"])
            return {}
        if what == "metrics":
            return {"page": await self._metrics_page()}
        if what == "drain":
            await self._engine.drain(body["name"])
        elif what == "resume":
            await self._engine.resume(body["name"])
        self.agreement.tell_engines()
        return asdict(await self._facts())

    async def tell_of_engines(self) -> None:
        """Tell all workers of each change of an engine, until cancelled."""
        while self._vllm is not None:
            await self._vllm.until_changed()
            self.agreement.tell_engines()

    async def _facts(self) -> Facts:
        catalog = self.catalog
        return Facts(
            ready=await self._engine.ready(),
            engines=tuple(self._engine.engines),
            problems=catalog.problems,
            warming=tuple(catalog.warming),
            classifier_problem=catalog.classifier_problem,
            stale_seconds=catalog.stale_seconds,
        )

    async def _metrics_page(self) -> str:
        self.telemetry.look_at(self.catalog)
        return render(self.telemetry.registry, await self.crew.counts()).decode()


def _nothing(_number: int, _work: WorkOfEngines) -> None:
    """For an engine whose work the parent sees itself."""


async def run_parent(
    settings: Settings, gatekeeper: Gatekeeper, registry: Registry, engine: Backend, bound: Sequence[socket.socket]
) -> None:
    """Engine up, catalog following, workers serving until SIGINT or SIGTERM.

    Raises `WorkersFailed` where workers cannot be kept alive, and what starting the engine raises.
    """
    parent = Parent(settings, gatekeeper, registry, engine, bound)
    kept = settings.decision_log
    log = DecisionLog(kept.path, text=kept.text, days=kept.days) if kept else None

    async def announced() -> None:
        await parent.agreement.all_serving(settings.workers, WARM_SECONDS)
        await announce(parent.catalog, addresses_of(bound), settings)

    async def serving() -> None:
        note(f"starting the {settings.engine.backend} engine on base {engine.base_id}")
        await engine.start()
        await parent.catalog.start()
        beside = [asyncio.create_task(announced()), asyncio.create_task(parent.tell_of_engines())]
        if log is not None:
            beside.append(asyncio.create_task(keep_swept(log, registry)))
        try:
            await parent.crew.run()
        finally:
            for task in beside:
                task.cancel()

    work = asyncio.create_task(serving())
    stop_on_signals(work, parent.crew.drain)
    try:
        with suppress(asyncio.CancelledError):
            await work
    finally:
        await parent.crew.stop()
        await parent.catalog.stop()
        await engine.stop()
        if log is not None:
            log.close()
