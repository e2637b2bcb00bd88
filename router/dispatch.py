"""answer(): decide, open the engine, follow the stream. Knows no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from adapters.types import AUTO

from .backends.base import Serving
from .errors import AdapterUnavailable, EngineFailed, EngineOverloaded
from .following.standing import Standing
from .keys.limits import Admission
from .keys.principal import ANONYMOUS, Principal
from .policy import NotScored, Snapshot, decide
from .telemetry import Outcome, Tail, Telemetry
from .types import Call, Decision, Judged, Reply
from .wire import ClientRequest

PINNED_WAIT_SECONDS = 30.0
MAX_UNRELEASED = 2
Choose = Callable[[Snapshot], Decision]


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision, the engine's reply to it, and what the gateway itself took, in seconds."""

    decision: Decision
    reply: Reply
    serial: int
    overhead_seconds: float


@dataclass(frozen=True, slots=True)
class Chosen:
    """A decision, the snapshot it was made under, and when (`time.perf_counter`)."""

    decision: Decision
    snapshot: Snapshot
    at: float = field(default_factory=time.perf_counter)


class Dispatcher:
    """Stateless but for the cap of `max_unreleased` requests at a time to versions that were never live."""

    def __init__(
        self,
        catalog: Standing,
        backend: Serving,
        telemetry: Telemetry,
        *,
        allow_unreleased: bool,
        max_unreleased: int = MAX_UNRELEASED,
    ) -> None:
        self._catalog = catalog
        self._backend = backend
        self._telemetry = telemetry
        self._allow_unreleased = allow_unreleased
        self._max_unreleased = max_unreleased
        self._unreleased = 0

    @property
    def unreleased(self) -> int:
        """How many requests for versions never live are waiting or being answered."""
        return self._unreleased

    async def answer(
        self,
        request: ClientRequest,
        request_id: str,
        principal: Principal = ANONYMOUS,
        admission: Admission | None = None,
    ) -> Answer:
        """Decide and open the engine. Raises what `decide` and `Backend.open` raise, before any byte went out.

        Whoever takes the answer reads its reply to the end or closes it; that ends `admission`, too.
        """
        started = time.perf_counter()
        judged = await self._judged(request)
        allow_unreleased = self._allow_unreleased or principal.may("operator")
        choose = partial(decide, request.model, judged, allow_unreleased=allow_unreleased, permitted=principal.routes)
        chosen = Chosen(choose(self._catalog.snapshot), self._catalog.snapshot)
        unreleased = self._is_unreleased(chosen)
        if unreleased and self._unreleased >= self._max_unreleased:
            raise EngineOverloaded(f"at most {self._max_unreleased} requests at a time may ask for versions never live")
        self._unreleased += unreleased
        try:
            chosen = await self._brought_in(chosen, choose)
            call = Call(request.endpoint, chosen.decision.engine_name, request.body, request.stream, request_id)
            chosen, reply = await self._open(call, chosen, choose)
        except BaseException:
            self._unreleased -= unreleased
            raise
        text = _classified_text(request, judged)
        ended = partial(self._ended, chosen.decision, request_id, principal.key_id, unreleased, text, admission)
        body = Followed(reply.body, ended, started=started, stream=request.stream)
        return Answer(chosen.decision, Reply(body, reply.content_type), chosen.snapshot.serial, chosen.at - started)

    async def _judged(self, request: ClientRequest) -> Judged | NotScored:
        if request.model != AUTO:
            return NotScored("base_requested")
        judge = self._catalog.judge
        scores = await judge.decide(request.texts)
        if scores is None:
            return NotScored("no_classifier")
        if not request.texts:
            return NotScored("not_text")
        return Judged(scores, judge.classifier_digest, judge.exemplars_digest)

    async def _brought_in(self, chosen: Chosen, choose: Choose) -> Chosen:
        """Wait for a version that was asked for by number, and as its policy says for a route's own."""
        decision = chosen.decision
        if decision.stage == "pinned" and decision.route is not None and decision.version is not None:
            await self._catalog.ensure_resident(decision.route, decision.version, timeout_seconds=PINNED_WAIT_SECONDS)
            return self._choose_again(choose)  # it may have been disabled or retired meanwhile
        if decision.reason == "adapter_unavailable":
            return await self._after_cold_wait(decision, choose)
        return chosen

    async def _open(self, call: Call, chosen: Chosen, choose: Choose) -> tuple[Chosen, Reply]:
        try:
            return chosen, await self._backend.open(call)
        except AdapterUnavailable:
            if chosen.decision.stage != "live":
                raise
        # The version left the engine between decision and call.
        chosen = await self._after_cold_wait(chosen.decision, choose)
        with suppress(AdapterUnavailable):
            return chosen, await self._backend.open(replace(call, engine_name=chosen.decision.engine_name))
        base = self._backend.base_id
        cold = replace(chosen.decision, engine_name=base, stage="base", version=None, reason="adapter_unavailable")
        return replace(chosen, decision=cold), await self._backend.open(replace(call, engine_name=base))

    async def _after_cold_wait(self, cold: Decision, choose: Choose) -> Chosen:
        """The route's cold policy: have its version brought in, wait as long as the policy says, decide again."""
        if cold.route is not None:
            wait_ms = self._catalog.snapshot.routes[cold.route].cold_wait_ms
            await self._catalog.until_warm(cold.route, timeout_seconds=wait_ms / 1000)
        return self._choose_again(choose)

    def _choose_again(self, choose: Choose) -> Chosen:
        snapshot = self._catalog.snapshot
        return Chosen(choose(snapshot), snapshot)

    def _ended(
        self,
        decision: Decision,
        request_id: str,
        key_id: str | None,
        unreleased: bool,
        text: str | None,
        admission: Admission | None,
        outcome: Outcome,
        tail: Tail,
        seconds: float,
    ) -> None:
        self._unreleased -= unreleased
        if admission is not None:
            admission.answered(*tail.tokens()[:2])
        self._telemetry.finished(decision, request_id, outcome, tail, seconds, text, key_id=key_id)

    def _is_unreleased(self, chosen: Chosen) -> bool:
        decision = chosen.decision
        if decision.stage != "pinned" or decision.route is None or decision.version is None:
            return False
        return not chosen.snapshot.routes[decision.route].versions[decision.version].released


def _classified_text(request: ClientRequest, judged: Judged | NotScored) -> str | None:
    """The turn that decided; the newest where none did."""
    if request.model != AUTO or not request.texts:
        return None
    return request.texts[judged.scores.turn if isinstance(judged, Judged) else 0]


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
