"""Keeps N workers alive: replaces who dies or hangs, and ends all of them in order."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from ..backends.base import Serving
from ..backends.vllm.told import WorkOfEngines
from ..background import Background
from ..errors import EngineUnavailable, WorkersFailed
from ..http.server import GRACE_SECONDS
from .agreement import Agreement
from .channel import Document
from .process import COMMAND, LAST_SECONDS, Worker
from .shapes import shape
from .shared_limits import Table, new_table
from .totals import Family, add_up, counters

MAX_STILLBORN = 4  # in a row, where none takes requests
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
SETTLED_SECONDS = 10.0
LOOK_SECONDS = 1.0
HUNG_SECONDS = 30.0
START_SECONDS = 120.0  # until a fresh interpreter has imported everything, on a machine that has much to do
log = logging.getLogger("branchline.workers")


class Crew:
    """Lives on the parent's event loop. `answer` answers what workers ask. `works` is told what each worker has the
    engines work on that it calls by itself. A worker that does not answer for `hung_seconds` is killed.
    """

    def __init__(
        self,
        count: int,
        agreement: Agreement,
        bound: Sequence[socket.socket],
        backend: Serving,
        answer: Callable[[str, Document], Awaitable[Document]],
        *,
        works: Callable[[int, WorkOfEngines], None] = lambda _number, _work: None,
        command: Sequence[str] = COMMAND,
        hung_seconds: float = HUNG_SECONDS,
    ) -> None:
        self._count = count
        self._agreement = agreement
        self._bound = bound
        self._backend = backend
        self._answer = answer
        self._works = works
        self._command = command
        self._hung_seconds = hung_seconds
        self._table = Table(new_table(), 0)
        self._background = Background()
        self._workers: dict[int, Worker] = {}
        self._stillborn = 0
        self._draining = False
        self._counts_of_the_dead: list[Family] = []

    async def run(self) -> None:
        """Until all workers have ended after `drain`. Raises `WorkersFailed` where they cannot be kept alive."""
        try:
            async with asyncio.TaskGroup() as keeping:
                for number in range(1, self._count + 1):
                    keeping.create_task(self._keep(number))
        except* WorkersFailed as failed:
            raise failed.exceptions[0] from None

    def drain(self) -> bool:
        """Let running answers finish and take nobody new; who has not ended after the grace time is killed.

        Whether there was anything to stop that had not begun to.
        """
        if self._draining or not self._agreement.serving:
            return False
        self._draining = True
        for listening in self._bound:
            listening.close()
        for worker in self._workers.values():
            worker.channel.tell("drain", {})
        self._background.later(GRACE_SECONDS + LAST_SECONDS, self._kill_all)
        return True

    async def stop(self) -> None:
        """End every worker at once. Call it after `run` has ended, or was cancelled."""
        self._draining = True
        self._kill_all()
        await self._background.stop()
        self._table.close()

    async def counts(self) -> list[list[Family]]:
        """The counters of all workers there are and were; of one that is slow to tell, what it told last."""
        workers = list(self._workers.values())
        looks = [asyncio.ensure_future(self._look_at(worker)) for worker in workers]
        if looks:
            _, slow = await asyncio.wait(looks, timeout=LOOK_SECONDS)
            for look in slow:
                look.cancel()
        return [self._counts_of_the_dead, *(worker.counts for worker in self._workers.values())]

    async def _keep(self, number: int) -> None:
        pause = 0.0
        while not self._draining:
            began = asyncio.get_running_loop().time()
            served, end = await self._run_one(number)
            if self._draining:
                return
            self._note_end(served, end)
            log.error("worker %d %s; another takes its place", number, end)
            lasted = asyncio.get_running_loop().time() - began >= SETTLED_SECONDS
            pause = 0.0 if lasted else min(2 * pause + FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def _run_one(self, number: int) -> tuple[bool, str]:
        """Whether a worker took requests, and how it ended."""
        hear = self._agreement.hear
        try:
            worker = await Worker.start(
                number, self._bound, self._table, self._backend, hear, self._answer, command=self._command
            )
        except OSError as error:
            return False, f"could not be started: {error.strerror}"
        self._workers[number] = worker
        try:
            end = await worker.run(partial(self._begin, worker))
        finally:
            del self._workers[number]
            self._counts_of_the_dead = add_up([self._counts_of_the_dead, counters(worker.counts)])
            self._table.clear(number)
            self._works(number, {})
            self._agreement.leave(worker)
        return worker.serves, f"(process {worker.pid}) {end}"

    def _begin(self, worker: Worker) -> None:
        self._agreement.join(worker)
        self._background.spawn(self._look_after(worker))
        if self._draining:
            worker.channel.tell("drain", {})

    def _note_end(self, served: bool, end: str) -> None:
        self._stillborn = 0 if served else self._stillborn + 1
        if self._stillborn >= MAX_STILLBORN and not self._agreement.serving:
            raise WorkersFailed(
                f"{self._stillborn} workers in a row ended before they took a request, the last one {end}",
                hint="what they wrote is above",
            )

    async def _look_after(self, worker: Worker) -> None:
        """Have its counts each second; kill it where it does not answer for long."""
        while self._workers.get(worker.number) is worker:
            look = self._background.spawn(self._look_at(worker))
            waited = 0.0
            while not (await asyncio.wait({look}, timeout=self._hung_seconds))[0]:
                waited += self._hung_seconds
                if worker.serves or waited >= START_SECONDS:
                    log.error("worker %d (process %d) does not answer", worker.number, worker.pid)
                    worker.kill()
                    return
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_at(self, worker: Worker) -> None:
        try:
            counts = await worker.channel.ask("counts", {}, seconds=None)
        except EngineUnavailable:
            return  # it is gone
        worker.counts = counts["families"]
        if self._workers.get(worker.number) is worker:
            self._works(worker.number, shape(WorkOfEngines).validate_python(counts["work"]))

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.kill()
