"""Tasks and timers that run beside the traffic: failures are logged, and all of them end together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
log = logging.getLogger("branchline.background")


class Background:
    """Lives on one event loop. Keeps a reference to each task, which the loop itself does not."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[object]] = set()
        self._timers: set[asyncio.TimerHandle] = set()
        self._stopped = False

    def spawn(self, work: Coroutine[object, object, Result]) -> asyncio.Task[Result]:
        task: asyncio.Task[Result] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        if self._stopped:
            task.cancel()
        return task

    def later(
        self, seconds: float, act: Callable[Arguments, object], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> asyncio.TimerHandle:
        """Call `act` in `seconds`, unless the handle is cancelled or everything is stopped before."""

        def due() -> None:
            self._timers.discard(timer)
            act(*args, **kwargs)

        timer = asyncio.get_running_loop().call_later(seconds, due)
        self._timers = {one for one in self._timers if not one.cancelled()} | {timer}
        return timer

    async def settled(self, timeout_seconds: float | None = None) -> None:
        """Wait until no task runs, or the time is over. Timers do not count."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while self._tasks:
                    await asyncio.wait(self._tasks)

    async def stop(self) -> None:
        """Cancel everything and wait for its end; what is spawned from here on is cancelled at once."""
        self._stopped = True
        for timer in self._timers:
            timer.cancel()
        for task in self._tasks:
            task.cancel()
        await self.settled()

    def _done(self, task: asyncio.Task[Result]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a background task failed", exc_info=error)
