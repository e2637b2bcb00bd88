"""Keeps N workers alive, and knows what all of them have in force."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ..backends.base import Serving
from ..backends.vllm.told import ToldEngines
from ..background import Background
from ..errors import EngineUnavailable, WorkersFailed
from ..policy import Snapshot
from ..principal import KeyRing
from ..server import GRACE_SECONDS
from .channel import Document
from .messages import Hello, JudgedWith, Told
from .process import COMMAND, LAST_SECONDS, Worker
from .shapes import shape
from .shared_limits import Table, new_table
from .totals import Family, add_up, counters

MAX_STILLBORN = 4  # in a row
FIRST_PAUSE_SECONDS = 0.05
LONGEST_PAUSE_SECONDS = 5.0
SETTLED_SECONDS = 10.0
LOOK_SECONDS = 1.0
HUNG_SECONDS = 30.0
Work = Mapping[str, tuple[int, float]]
log = logging.getLogger("branchline.workers")


class Crew:
    """Lives on the parent's event loop. `answer` answers what workers ask, `judged` is called when what one of them
    judges with has changed. `keys` are those of the registry as they are now. Where workers open calls to engines by
    themselves, `engines` tells of these, and `works` is told what each worker has them work on.
    """

    def __init__(
        self,
        hello: Hello,
        bound: socket.socket,
        backend: Serving,
        answer: Callable[[str, Document], Awaitable[Document]],
        *,
        command: Sequence[str] = COMMAND,
    ) -> None:
        self.keys: Callable[[], KeyRing] = KeyRing
        self.judged: Callable[[], None] = lambda: None
        self.engines: Callable[[], ToldEngines] | None = None
        self.works: Callable[[int, Work], None] = lambda _number, _work: None
        self._engines_told = ToldEngines()
        self._hello = hello
        self._count_wanted = hello.settings.workers
        self._bound = bound
        self._backend = backend
        self._answer = answer
        self._keys_told = KeyRing()
        self._table = Table(new_table(), 0)
        self._command = command
        self._background = Background()
        self._workers: dict[int, Worker] = {}
        self._stillborn = 0
        self._draining = False
        self._snapshot = Snapshot(0, backend.base_id, {})
        self._judge: Document = {"classifier": None, "exemplars": None}
        self._sequence = 0
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._counts_of_the_dead: list[Family] = []
        self._news = asyncio.Event()

    # -- life -----------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until all workers have ended after `drain`. Raises `WorkersFailed` where they cannot be kept alive."""
        looking = self._background.spawn(self._look_after())
        try:
            async with asyncio.TaskGroup() as keeping:
                for number in range(1, self._count_wanted + 1):
                    keeping.create_task(self._keep(number))
        except* WorkersFailed as failed:
            raise failed.exceptions[0] from None
        finally:
            looking.cancel()

    def drain(self) -> bool:
        """Let running answers finish and take nobody new; who has not ended after the grace time is killed.

        Whether there was anything to stop that had not begun to.
        """
        if self._draining or not self.serving:
            return False
        self._draining = True
        self._bound.close()
        self._broadcast("drain", {})
        self._background.later(GRACE_SECONDS + LAST_SECONDS, self._kill_all)
        return True

    async def stop(self) -> None:
        """End every worker at once."""
        self._draining = True
        self._kill_all()
        await self._background.stop()
        self._table.close()

    def _kill_all(self) -> None:
        for worker in self._workers.values():
            worker.kill()

    async def all_serving(self, timeout_seconds: float) -> None:
        """Wait until every worker takes requests, or the time is over."""
        try:
            async with asyncio.timeout(timeout_seconds):
                while len(self.serving) < self._count_wanted:
                    await self._news.wait()
        except TimeoutError:
            return

    @property
    def serving(self) -> list[Worker]:
        return [worker for worker in self._workers.values() if worker.serves]

    async def _keep(self, number: int) -> None:
        pause = 0.0
        while not self._draining:
            began = asyncio.get_running_loop().time()
            served, end = await self._run_one(number)
            if self._draining:
                return
            self._count(served, end)
            log.error("worker %d %s; another takes its place", number, end)
            lasted = asyncio.get_running_loop().time() - began >= SETTLED_SECONDS
            pause = 0.0 if lasted else min(2 * pause + FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def _run_one(self, number: int) -> tuple[bool, str]:
        """Whether a worker took requests, and how it ended."""
        try:
            worker = await Worker.start(
                number, self._bound, self._table, self._backend, self._hear, self._answer, command=self._command
            )
        except OSError as error:
            return False, f"could not be started: {error.strerror}"
        self._workers[number] = worker
        try:
            end = await worker.run(partial(self._greet, worker))
        finally:
            del self._workers[number]
            self._counts_of_the_dead = add_up([self._counts_of_the_dead, counters(worker.counts)])
            self._table.clear(number)
            self.works(number, {})
            self._settle()
            self.judged()
        return worker.serves, f"(process {worker.pid}) {end}"

    def _count(self, served: bool, end: str) -> None:
        self._stillborn = 0 if served else self._stillborn + 1
        if self._stillborn >= MAX_STILLBORN:
            raise WorkersFailed(
                f"{self._stillborn} workers in a row ended before they took a request, the last one {end}",
                hint="what they wrote is above",
            )

    async def _look_after(self) -> None:
        """Have every worker's counts each second; one that does not answer for long is killed."""
        while True:
            await asyncio.gather(*[self._look_at(worker) for worker in self.serving])
            await asyncio.sleep(LOOK_SECONDS)

    async def _look_at(self, worker: Worker) -> None:
        try:
            async with asyncio.timeout(HUNG_SECONDS):
                await self._have_counts(worker)
        except TimeoutError:
            log.error("worker %d (process %d) does not answer", worker.number, worker.pid)
            worker.kill()
        except EngineUnavailable:
            return

    # -- what is in force -----------------------------------------------------------------------------------------

    def tell(self, snapshot: Snapshot, changed: Sequence[str], done: Callable[[], None]) -> None:
        """Put `snapshot` in force in every worker; `done` is called when that is so. Keeps the contract of `Tell`."""
        self.tell_engines()  # before it, so that what is put in force is known to be there
        self._snapshot = snapshot
        self._sequence += 1
        self._waiting.append((self._sequence, done))
        self._broadcast("told", self._told(replace(snapshot, routes={name: snapshot.routes[name] for name in changed})))
        self._settle()

    def tell_engines(self) -> None:
        """Have every worker follow the engines, where it opens its calls to them by itself."""
        if self.engines is None:
            return
        told = self.engines()
        if told != self._engines_told:
            self._engines_told = told
            self._broadcast("engines", shape(ToldEngines).dump_python(told, mode="json"))

    def tell_judge(self, classifier: str | None, exemplars: Document | None) -> None:
        """Have every worker judge with these; `exemplars` only where they changed."""
        kept = self._judge["exemplars"] if exemplars is None else exemplars
        self._judge = {"classifier": classifier, "exemplars": kept}
        self._broadcast("judge", {"classifier": classifier, "exemplars": exemplars})

    def judged_with(self) -> list[JudgedWith]:
        """What each worker that takes requests judges with."""
        return [worker.judged for worker in self.serving]

    async def counts(self) -> list[list[Family]]:
        """The counters of all workers there are and were."""
        await asyncio.gather(*[self._counted(worker) for worker in self.serving])
        return [self._counts_of_the_dead, *(worker.counts for worker in self._workers.values())]

    async def _counted(self, worker: Worker) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._have_counts(worker)
        except (TimeoutError, EngineUnavailable):
            return  # what it told last

    async def _have_counts(self, worker: Worker) -> None:
        counts = await worker.channel.ask("counts", {})
        worker.counts = counts["families"]
        if worker.number in self._workers:
            self.works(worker.number, counts["work"])

    def _told(self, snapshot: Snapshot, *, whole: bool = False) -> dict[str, Any]:
        ring = self.keys()
        keys = tuple(ring.keys.values()) if whole or ring is not self._keys_told else None
        self._keys_told = ring
        message: dict[str, Any] = shape(Told).dump_python(Told(self._sequence, snapshot, whole, keys), mode="json")
        return message

    def _broadcast(self, what: str, body: Document) -> None:
        for worker in self._workers.values():
            worker.channel.tell(what, body)

    def _greet(self, worker: Worker) -> None:
        """Everything that a new worker has to know; what changes from here on it is told as all others."""
        worker.channel.tell("hello", shape(Hello).dump_python(replace(self._hello, number=worker.number), mode="json"))
        if self.engines is not None:
            worker.channel.tell("engines", shape(ToldEngines).dump_python(self.engines(), mode="json"))
        worker.channel.tell("told", self._told(self._snapshot, whole=True))
        worker.channel.tell("judge", self._judge)

    def _hear(self, worker: Worker, what: str, body: Document) -> None:
        if what == "acknowledged":
            worker.acknowledged = body["sequence"]
            self._settle()
        elif what == "judged":
            worker.judged = shape(JudgedWith).validate_python(body)
            self.judged()
        elif what == "ready":
            worker.is_ready = True
        self._let_serve(worker)

    def _let_serve(self, worker: Worker) -> None:
        """It takes requests once it has in force what all others have; whatever changes later waits for it, too."""
        if worker.is_ready and not worker.serves and worker.acknowledged == self._sequence:
            worker.serves = True
            worker.channel.tell("go", {})
            if self._draining:
                worker.channel.tell("drain", {})
            self.judged()
            self._news.set()
            self._news = asyncio.Event()

    def _settle(self) -> None:
        slowest = min((worker.acknowledged for worker in self.serving), default=self._sequence)
        while self._waiting and self._waiting[0][0] <= slowest:
            self._waiting.popleft()[1]()
