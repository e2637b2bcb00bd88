"""answer(): decide, open the engine, follow the stream. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from functools import partial

from .backends.base import Backend
from .catalog import Catalog
from .errors import AdapterUnavailable, EngineFailed, EngineOverloaded
from .policy import AUTO, NotScored, Snapshot, decide
from .telemetry import Outcome, Tail, Telemetry
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

    @property
    def unreleased(self) -> int:
        """How many requests for versions never live are waiting or being answered."""
        return self._unreleased

    async def answer(self, request: ClientRequest, request_id: str) -> Answer:
        """Decide and open the engine. Raises what `decide` and `Backend.open` raise, before any byte went out.

        Whoever takes the answer reads its reply to the end or closes it.
        """
        started = time.perf_counter()
        snapshot = self._catalog.snapshot
        decision = self.decide(request, snapshot)
        unreleased = self._is_unreleased(decision, snapshot)
        if unreleased and self._unreleased >= MAX_UNRELEASED:
            raise EngineOverloaded(f"at most {MAX_UNRELEASED} requests at a time may ask for versions never live")
        self._unreleased += unreleased
        try:
            if decision.stage == "pinned" and decision.route is not None and decision.version is not None:
                await self._catalog.ensure_resident(
                    decision.route, decision.version, timeout_seconds=PINNED_WAIT_SECONDS
                )
            decided = time.perf_counter()
            decision, reply = await self._open(decision, request, request_id)
        except BaseException:
            self._unreleased -= unreleased
            raise
        ended = partial(self._ended, decision, request_id, unreleased)
        body = Followed(reply.body, ended, started=started, stream=request.stream)
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
            if decision.stage != "live" or decision.route is None:
                raise
        # The version left the engine between decision and call: the route's cold policy, the base, said so.
        self._catalog.warm_again(decision.route)
        cold = replace(decision, engine_name=self._backend.base_id, stage="base", version=None)
        cold = replace(cold, reason="adapter_unavailable")
        return cold, await self._backend.open(replace(call, engine_name=cold.engine_name))

    def _ended(
        self, decision: Decision, request_id: str, unreleased: bool, outcome: Outcome, tail: Tail, seconds: float
    ) -> None:
        self._unreleased -= unreleased
        self._telemetry.finished(decision, request_id, outcome, tail, seconds)

    def _is_unreleased(self, decision: Decision, snapshot: Snapshot) -> bool:
        if decision.stage != "pinned" or decision.route is None or decision.version is None:
            return False
        return not snapshot.routes[decision.route].versions[decision.version].released


class Followed(AsyncIterator[bytes]):
    """A reply's bytes as they are, counted as they pass; closing it closes the engine's work.

    `ended` is called once with the outcome, whatever ends it: also where nobody ever reads.
    """

    def __init__(
        self, body: AsyncIterator[bytes], ended: Callable[[Outcome, Tail, float], None], *, started: float, stream: bool
    ) -> None:
        self._body = body
        self._ended: Callable[[Outcome, Tail, float], None] | None = ended
        self._started = started
        self._stream = stream
        self._tail = Tail(stream=stream)

    async def __anext__(self) -> bytes:
        try:
            piece = await anext(self._body)
        except StopAsyncIteration:
            if self._stream and not self._tail.done:
                self._end("failed")
                raise EngineFailed("the engine's answer broke off") from None
            self._end("ok")
            raise
        except asyncio.CancelledError:
            self._end("cancelled")
            raise
        except BaseException:
            self._end("failed")
            raise
        self._tail.push(piece, time.perf_counter() - self._started)
        return piece

    async def aclose(self) -> None:
        self._end("cancelled")
        await close(self._body)

    def __del__(self) -> None:
        self._end("cancelled")

    def _end(self, outcome: Outcome) -> None:
        ended, self._ended = self._ended, None
        if ended is not None:
            ended(outcome, self._tail, time.perf_counter() - self._started)


async def close(body: AsyncIterator[bytes]) -> None:
    """Close an iterator early where it can be closed: that is how an engine learns that the client went away."""
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        await aclose()
