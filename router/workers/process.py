"""One worker process as its parent sees it: started, told things, asked things, ended."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from ..backends.base import Serving
from .calls import CallServer
from .channel import Channel, Document
from .messages import JudgedWith
from .shared_limits import Table
from .totals import Family

COMMAND = (sys.executable, "-P", "-m", "router.workers.worker")  # -P: no package of the folder it is started in
LAST_SECONDS = 2.0
log = logging.getLogger("branchline.workers")
KEYS = frozenset({"BRANCHLINE_API_KEY", "BRANCHLINE_ENGINE_API_KEY"})  # told over the channel, to who needs them


class Worker:
    """Lives on the parent's event loop. `serves` from when it was told to take requests; `acknowledged` is the last of
    the numbered messages that it has put in force; `counts` are its counters as it told them last.
    """

    def __init__(self, number: int, process: asyncio.subprocess.Process, channel: Channel, calls: CallServer) -> None:
        self.number = number
        self.channel = channel
        self.is_ready = False
        self.serves = False
        self.acknowledged = 0
        self.judged = JudgedWith()
        self.counts: list[Family] = []
        self._process = process
        self._calls = calls

    @classmethod
    async def start(
        cls,
        number: int,
        bound: Sequence[socket.socket],
        table: Table,
        backend: Serving,
        hear: Callable[[Worker, str, Document], None],
        answer: Callable[[str, Document], Awaitable[Document]],
        *,
        command: Sequence[str] = COMMAND,
    ) -> Worker:
        """Start `command` with the listening sockets, the limits and its ends of two pairs. Raises `OSError`."""
        control, its_control = socket.socketpair()
        handed, its_handed = socket.socketpair()
        listening = [one.fileno() for one in bound]
        others = (table.descriptor, its_control.fileno(), its_handed.fileno())
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                ",".join(map(str, listening)),
                *map(str, others),
                pass_fds=(*listening, *others),
                stdin=asyncio.subprocess.DEVNULL,
                env={name: value for name, value in os.environ.items() if name not in KEYS},
                start_new_session=True,  # Ctrl-C is for the parent, which then ends its workers in order
            )
        except BaseException:
            control.close()
            handed.close()
            raise
        finally:
            its_control.close()
            its_handed.close()
        channel = Channel(control, lambda what, body: hear(worker, what, body), answer)
        calls = CallServer(backend, handed)
        worker = cls(number, process, channel, calls)
        calls.start()
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    async def run(self, greet: Callable[[], None]) -> str:
        """Follow it to its end; how it ended, in words. `greet` is called when it can be told things."""
        try:
            await self.channel.run(greet)
            async with asyncio.timeout(LAST_SECONDS):
                await self._process.wait()
        except TimeoutError:
            self.kill()  # it closed its channel, and went on
        except Exception:
            log.exception("worker %d said what makes no sense", self.number)
        finally:
            self.kill()
            await self._calls.stop()
            code = await self._process.wait()
        return how_it_ended(code)

    def kill(self) -> None:
        """End it now."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.kill()


def how_it_ended(code: int) -> str:
    """What a process's exit code says."""
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"
