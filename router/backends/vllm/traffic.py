"""What one engine works on for this gateway: calls that wait for their first byte, and answers that have begun."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from ...errors import EngineFailed
from ...types import Call, Reply
from .body import Body
from .client import EngineBroke, EngineClient


class Traffic:
    """Lives on one event loop. `busy` counts by engine name; `heard_at` is when anything last came back, or when the
    first of the calls now waiting began, in seconds on the loop's clock. `heard_at` and `outstanding` include what
    other processes of this gateway told of themselves.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._opening: set[asyncio.Timeout] = set()
        self._bodies: weakref.WeakSet[Body] = weakref.WeakSet()
        self.busy: Counter[str] = Counter()
        self._own = 0
        self._own_heard_at = 0.0
        self._elsewhere: dict[int, tuple[int, float]] = {}

    @property
    def outstanding(self) -> int:
        return self._own + sum(count for count, _ in self._elsewhere.values()) if self._elsewhere else self._own

    @property
    def heard_at(self) -> float:
        return max([self._own_heard_at, *(at for _, at in self._elsewhere.values())])

    def elsewhere(self, number: int, outstanding: int, heard_seconds_ago: float) -> None:
        """What process `number` works on with this engine; nothing when it is gone."""
        if outstanding:
            self._elsewhere[number] = outstanding, asyncio.get_running_loop().time() - heard_seconds_ago
        else:
            self._elsewhere.pop(number, None)

    async def open(self, call: Call, broke_off: Callable[[], None]) -> Reply:
        """Begin a call; raises what `EngineClient.begin` raises. `broke_off` is called if its answer breaks later."""
        async with self.working(call.engine_name):
            begun = await self._client.begin(call)
        self._begin(call.engine_name)
        self.hear()
        body = Body(begun, self.hear, partial(self._body_ended, call.engine_name, broke_off))
        if begun.response is not None:
            self._bodies.add(body)
        return Reply(body, begun.content_type)

    async def ask(self, path: str, body: Mapping[str, object], *, seconds: float, request_id: str) -> dict[str, Any]:
        """One request of Branchline's own; raises what `EngineClient.ask` raises."""
        async with self.working(str(body["model"])):
            answer = await self._client.ask(path, body, seconds=seconds, request_id=request_id)
        self.hear()
        return answer

    def working(self, engine_name: str) -> Waiting:
        """Something that waits for this engine on behalf of `engine_name`; `end` gives it up, with `EngineBroke`."""
        return Waiting(self, engine_name)

    def began(self, engine_name: str, scope: asyncio.Timeout) -> None:
        self._begin(engine_name)
        self._opening.add(scope)

    def ended(self, engine_name: str, scope: asyncio.Timeout) -> None:
        self._opening.discard(scope)
        self._end(engine_name)

    def end(self, *, streams: bool) -> None:
        """Give up what has not begun, with `EngineUnavailable`; with `streams` also what has, with `EngineFailed`."""
        opening, self._opening = self._opening, set()
        now = asyncio.get_running_loop().time()
        for scope in opening:
            scope.reschedule(now)
        if streams:
            for body in list(self._bodies):
                body.fail(EngineFailed("the engine went down while it answered"))

    def hear(self) -> None:
        self._own_heard_at = asyncio.get_running_loop().time()

    def _body_ended(self, engine_name: str, broke_off: Callable[[], None], broken: bool) -> None:
        self._end(engine_name)
        if broken:
            broke_off()

    def _begin(self, engine_name: str) -> None:
        if not self._own:
            self.hear()
        self._own += 1
        self.busy[engine_name] += 1

    def _end(self, engine_name: str) -> None:
        self._own -= 1
        self.busy[engine_name] -= 1
        if not self.busy[engine_name]:
            del self.busy[engine_name]


class Waiting:
    """What `Traffic.working` gives: an asynchronous context manager, written out because each request enters one."""

    __slots__ = ("_engine_name", "_scope", "_traffic")

    def __init__(self, traffic: Traffic, engine_name: str) -> None:
        self._traffic = traffic
        self._engine_name = engine_name
        self._scope = asyncio.timeout(None)

    async def __aenter__(self) -> None:
        self._traffic.began(self._engine_name, self._scope)
        await self._scope.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            raise EngineBroke("the engine went down before it answered") from None
        finally:
            self._traffic.ended(self._engine_name, self._scope)
