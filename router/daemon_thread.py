"""Blocking work that no exit waits for: `asyncio.to_thread` would be joined, however long it still takes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

Result = TypeVar("Result")
WORK = "daemon-work"  # the name of such a thread


async def in_daemon_thread(work: Callable[[], Result]) -> Result:
    """What `work` gives or raises, in a thread of its own. Cancelled, it goes on unheard; it ends with the process."""
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - it is raised where it is awaited
            outcome.set_exception(error)

    outcome.set_running_or_notify_cancel()
    threading.Thread(target=run, name=WORK, daemon=True).start()
    return await asyncio.wrap_future(outcome)
