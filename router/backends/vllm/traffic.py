"""What one engine works on for this gateway: calls that wait for their first byte, and answers that have begun."""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Any

from ...errors import EngineFailed, EngineUnavailable
from ...types import Call, Reply
from .body import Body
from .client import EngineBroke, EngineClient, EngineStalled


class Traffic:
    """Lives on one event loop. `busy` counts by engine name; `heard_at` is when anything last came back, or when the
    first of the calls now waiting began, in seconds on the loop's clock. `waiting` counts those whose answer has not
    begun. `heard_at`, `outstanding` and `waiting` include what other processes of this gateway told of themselves.
    """

    def __init__(self, client: EngineClient) -> None:
        self._client = client
        self._opening: set[Waiting] = set()
        self._bodies: weakref.WeakSet[Body] = weakref.WeakSet()
        self.busy: Counter[str] = Counter()
        self._own = 0
        self._own_heard_at = 0.0
        self._elsewhere: dict[int, tuple[int, int, float]] = {}

    @property
    def outstanding(self) -> int:
        return self._own + sum(count for count, _, _ in self._elsewhere.values()) if self._elsewhere else self._own

    @property
    def waiting(self) -> int:
        return len(self._opening) + sum(count for _, count, _ in self._elsewhere.values())

    @property
    def heard_at(self) -> float:
        return max([self._own_heard_at, *(at for _, _, at in self._elsewhere.values())])

    def elsewhere(self, number: int, outstanding: int, waiting: int, heard_seconds_ago: float) -> None:
        """What process `number` works on with this engine; nothing when it is gone."""
        if outstanding:
            heard_at = asyncio.get_running_loop().time() - heard_seconds_ago
            self._elsewhere[number] = outstanding, waiting, heard_at
        else:
            self._elsewhere.pop(number, None)

    async def open(self, call: Call, broke_off: Callable[[], None], *, stays: bool = False) -> Reply:
        """Begin a call; raises what `EngineClient.begin` raises, and `EngineStalled` where `move` took it from here,
        which it does not with `stays`. `broke_off` is called if its answer breaks later.
        """
        async with Waiting(self, call.engine_name, stays=stays):
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
        return Waiting(self, engine_name, stays=True)

    def began(self, one: Waiting) -> None:
        self._begin(one.engine_name)
        self._opening.add(one)

    def ended(self, one: Waiting) -> None:
        self._opening.discard(one)
        self._end(one.engine_name)

    def move(self, goes: Callable[[str], bool]) -> None:
        """Give up the calls that have not begun, whose engine name `goes`, with `EngineStalled`."""
        moving = {one for one in self._opening if not one.stays and goes(one.engine_name)}
        self._opening -= moving
        for one in moving:
            one.give_up(EngineStalled("the engine does nothing"))

    def end(self, *, streams: bool) -> None:
        """Give up what has not begun, with `EngineUnavailable`; with `streams` also what has, with `EngineFailed`."""
        opening, self._opening = self._opening, set()
        for one in opening:
            one.give_up(EngineBroke("the engine went down before it answered"))
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

    __slots__ = ("_error", "_scope", "_traffic", "engine_name", "stays")

    def __init__(self, traffic: Traffic, engine_name: str, *, stays: bool) -> None:
        self._traffic = traffic
        self.engine_name = engine_name
        self.stays = stays
        self._scope = asyncio.timeout(None)
        self._error: EngineUnavailable | None = None

    def give_up(self, error: EngineUnavailable) -> None:
        """End it with `error`."""
        self._error = error
        self._scope.reschedule(asyncio.get_running_loop().time())

    async def __aenter__(self) -> None:
        self._traffic.began(self)
        await self._scope.__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._error is None:
                raise
            raise self._error from None
        finally:
            self._traffic.ended(self)
