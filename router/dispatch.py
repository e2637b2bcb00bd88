"""answer(): decide, open the engine, follow the stream. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from .backends.base import Backend
from .catalog import Catalog
from .errors import AdapterUnavailable, EngineOverloaded
from .policy import AUTO, NotScored, Snapshot, decide
from .telemetry import Tail, Telemetry
from .types import Call, Decision, Reply, Scores
from .wire import ClientRequest

PINNED_WAIT_SECONDS = 30.0
MAX_UNRELEASED = 2


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision, the engine's reply to it, and what the gateway itself took, in seconds."""

    decision: Decision
    reply: Reply
    serial: int
    overhead_seconds: float


class Dispatcher:
    """Stateless but for the cap on requests to versions that were never live."""

    def __init__(self, catalog: Catalog, backend: Backend, telemetry: Telemetry, *, allow_unreleased: bool) -> None:
        self._catalog = catalog
        self._backend = backend
        self._telemetry = telemetry
        self._allow_unreleased = allow_unreleased
        self._unreleased = 0

    async def answer(self, request: ClientRequest, request_id: str) -> Answer:
        """Decide and open the engine. Raises what `decide` and `Backend.open` raise, before any byte went out."""
        started = time.perf_counter()
        snapshot = self._catalog.snapshot
        decision = self.decide(request, snapshot)
        unreleased = self._is_unreleased(decision, snapshot)
        if unreleased and self._unreleased >= MAX_UNRELEASED:
            raise EngineOverloaded(f"at most {MAX_UNRELEASED} requests at a time may ask for versions never live")
        if decision.stage == "pinned" and decision.route is not None and decision.version is not None:
            await self._catalog.ensure_resident(decision.route, decision.version, timeout_seconds=PINNED_WAIT_SECONDS)
        decided = time.perf_counter()
        decision, reply = await self._open(decision, request, request_id)
        body = self._followed(decision, request, request_id, reply, started, unreleased=unreleased)
        return Answer(decision, Reply(body, reply.content_type), snapshot.serial, decided - started)

    def decide(self, request: ClientRequest, snapshot: Snapshot) -> Decision:
        """The decision for a request under a snapshot; classifies where the request leaves the choice open."""
        scores = self._score(request) if request.model == AUTO else NotScored("base_requested")
        return decide(request.model, scores, snapshot, allow_unreleased=self._allow_unreleased)

    def _score(self, request: ClientRequest) -> Scores | NotScored:
        classifier = self._catalog.classifier
        if classifier is None:
            return NotScored("no_classifier")
        if not request.texts:
            return NotScored("not_text")
        return classifier.decide_text(request.texts)

    async def _open(self, decision: Decision, request: ClientRequest, request_id: str) -> tuple[Decision, Reply]:
        call = Call(request.endpoint, decision.engine_name, request.body, request.stream, request_id)
        try:
            return decision, await self._backend.open(call)
        except AdapterUnavailable:
            if decision.stage != "live":
                raise
        # The version left the engine between decision and call: the route's cold policy, the base, said so.
        cold = replace(decision, engine_name=self._backend.base_id, stage="base", version=None)
        cold = replace(cold, reason="adapter_unavailable")
        return cold, await self._backend.open(replace(call, engine_name=cold.engine_name))

    async def _followed(
        self,
        decision: Decision,
        request: ClientRequest,
        request_id: str,
        reply: Reply,
        started: float,
        *,
        unreleased: bool,
    ) -> AsyncIterator[bytes]:
        """The reply's bytes as they are, while what passes is counted; closing it closes the engine's work."""
        tail = Tail(stream=request.stream)
        outcome = "cancelled"
        self._unreleased += unreleased
        try:
            async with _closing(reply.body) as pieces:
                async for piece in pieces:
                    tail.push(piece, time.perf_counter() - started)
                    yield piece
            outcome = "ok"
        except (asyncio.CancelledError, GeneratorExit):
            raise
        except BaseException:
            outcome = "failed"
            raise
        finally:
            self._unreleased -= unreleased
            self._telemetry.finished(decision, request_id, outcome, tail, time.perf_counter() - started)

    def _is_unreleased(self, decision: Decision, snapshot: Snapshot) -> bool:
        if decision.stage != "pinned" or decision.route is None or decision.version is None:
            return False
        return not snapshot.routes[decision.route].versions[decision.version].released


@asynccontextmanager
async def _closing(body: AsyncIterator[bytes]) -> AsyncIterator[AsyncIterator[bytes]]:
    """Close an iterator early where it can be closed: that is how an engine learns that the client went away."""
    try:
        yield body
    finally:
        close = getattr(body, "aclose", None)
        if close is not None:
            await close()
