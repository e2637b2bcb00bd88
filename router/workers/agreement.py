"""What all workers have in force: what they were told, and what they have acknowledged."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from ..backends.vllm.told import ToldEngines
from ..keys.principal import KeyRing
from ..policy import Snapshot
from .channel import Document
from .messages import Hello, JudgedWith, Told
from .process import Worker
from .shapes import shape


class Agreement:
    """Lives on the parent's event loop. `hello` is what each worker is told first, `keys` are the registry's as they
    are now, `engines` tells of those that workers call by themselves. `judged` is called when what a worker judges
    with has changed.
    """

    def __init__(self, hello: Hello, keys: Callable[[], KeyRing], engines: Callable[[], ToldEngines]) -> None:
        self.judged: Callable[[], None] = lambda: None
        self._hello = hello
        self._keys = keys
        self._keys_told = KeyRing()
        self._engines = engines
        self._engines_told = ToldEngines()
        self._workers: list[Worker] = []
        self._snapshot = Snapshot(0, hello.base_id, {})
        self._judge: Document = {"classifier": None, "exemplars": None}
        self._sequence = 0
        self._waiting: deque[tuple[int, Callable[[], None]]] = deque()
        self._news = asyncio.Event()

    @property
    def serving(self) -> list[Worker]:
        """Those that take requests."""
        return [worker for worker in self._workers if worker.serves]

    def tell(self, snapshot: Snapshot, changed: Sequence[str], done: Callable[[], None]) -> None:
        """Put `snapshot` in force in every worker; `done` is called when that is so. Keeps the contract of `Tell`."""
        self.tell_engines()  # before it, so that what is put in force is known to be there
        self._snapshot = snapshot
        self._sequence += 1
        self._waiting.append((self._sequence, done))
        part = replace(snapshot, routes={name: snapshot.routes[name] for name in changed})
        self._broadcast("told", self._told(part, whole=False))
        self._settle()

    def tell_engines(self) -> None:
        """Have every worker know the state of the engines."""
        told = self._engines()
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

    async def all_serving(self, count: int, timeout_seconds: float) -> None:
        """Wait until `count` workers take requests, or the time is over."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_seconds):
                while len(self.serving) < count:
                    await self._news.wait()

    def join(self, worker: Worker) -> None:
        """Tell a new worker everything; what changes from here on it is told as all others."""
        self._workers.append(worker)
        hello = replace(self._hello, number=worker.number)
        worker.channel.tell("hello", shape(Hello).dump_python(hello, mode="json"))
        worker.channel.tell("engines", shape(ToldEngines).dump_python(self._engines(), mode="json"))
        worker.channel.tell("told", self._told(self._snapshot, whole=True))
        worker.channel.tell("judge", self._judge)

    def leave(self, worker: Worker) -> None:
        """It is gone, and nothing waits for it any more."""
        if worker in self._workers:
            self._workers.remove(worker)
        self._settle()
        self.judged()

    def hear(self, worker: Worker, what: str, body: Document) -> None:
        """A worker says how far it has come."""
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
            self.judged()
            self._news.set()
            self._news = asyncio.Event()

    def _settle(self) -> None:
        slowest = min((worker.acknowledged for worker in self.serving), default=self._sequence)
        while self._waiting and self._waiting[0][0] <= slowest:
            self._waiting.popleft()[1]()

    def _told(self, snapshot: Snapshot, *, whole: bool) -> dict[str, Any]:
        ring, before = self._keys(), KeyRing() if whole else self._keys_told
        keys = () if ring is before else tuple(key for key in ring.keys.values() if before.keys.get(key.id) is not key)
        if not whole:
            self._keys_told = ring
        message: dict[str, Any] = shape(Told).dump_python(Told(self._sequence, snapshot, whole, keys), mode="json")
        return message

    def _broadcast(self, what: str, body: Document) -> None:
        for worker in self._workers:
            worker.channel.tell(what, body)
