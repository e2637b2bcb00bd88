"""The decode loop, in its own thread: admit, step, hand over, until told to stop.

A step is one forward for all rows, whatever their adapters. Between two steps rows leave (finished or cancelled) and
waiting jobs enter, each with a forward over its own prompt.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...errors import EngineFailed, EngineOverloaded
from .cache import SlotCache
from .choose import choose
from .engine import Engine
from .lora import Binding
from .row import Item, Job, Row

logger = logging.getLogger(__name__)
PREFILL_TOKENS = 512  # prompt tokens taken in between two steps; one prompt is always taken

Deliver = Callable[[list[tuple[Job, Item]]], None]


class Decoder:
    """At most `max_rows` jobs in the batch, `max_waiting` in the queue; `deliver` runs on the decoder's thread."""

    def __init__(self, engine: Engine, deliver: Deliver, *, max_rows: int, max_waiting: int, threads: int) -> None:
        self._engine = engine
        self._deliver = deliver
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._threads = threads
        self._changed = threading.Condition()
        self._waiting: deque[Job] = deque()
        self._open: set[Job] = set()
        self._stopping = False
        self._rows: list[Row] = []
        self._cache = SlotCache(engine.device)
        self._binding: Binding | None = None
        self._outbox: list[tuple[Job, Item]] = []
        self._thread = threading.Thread(target=self._run, name="branchline-decoder", daemon=True)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._stopping

    @property
    def running(self) -> int:
        """Jobs that are in the batch, in the queue or between the two."""
        return len(self._open)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the loop within one step; everything open gets `EngineFailed`. Blocks until the thread is gone."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.ident is not None:
            self._thread.join()

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue all `jobs` or none. Raises `EngineOverloaded`, or `EngineFailed` where the loop has ended."""
        with self._changed:
            if not self.alive:
                raise EngineFailed("the engine is not running")
            urgent = all(job.urgent for job in jobs)
            if not urgent and self.running + len(jobs) > self._max_rows + self._max_waiting:
                raise EngineOverloaded(
                    f"{self._max_rows} requests are being answered and {self._max_waiting} wait; try again later"
                )
            self._open.update(jobs)
            if urgent:
                self._waiting.extendleft(jobs)
            else:
                self._waiting.extend(jobs)
            self._changed.notify()

    def _run(self) -> None:
        reason = "the engine was stopped"
        try:
            torch.set_num_threads(min(self._threads, torch.get_num_threads()))
            with torch.inference_mode():
                while self._has_work():
                    self._drop_cancelled()
                    self._admit()
                    self._step()
                    self._hand_over()
        except Exception:
            logger.exception("the decoder died")
            reason = "the engine died"
        finally:
            self._fail_all(EngineFailed(reason))

    def _has_work(self) -> bool:
        """Wait for something to do; false where the loop must end."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._waiting or self._rows)
            return not self._stopping

    def _drop_cancelled(self) -> None:
        with self._changed:
            gone = {job for job in self._open if job.cancelled}
            self._waiting = deque(job for job in self._waiting if job not in gone)
            self._open -= gone
        for index in reversed(range(len(self._rows))):
            if self._rows[index].job in gone:
                self._remove(index)

    def _admit(self) -> None:
        taken = 0
        while taken < PREFILL_TOKENS and (job := self._next_job()) is not None:
            taken += len(job.ids)
            try:
                self._prefill(job)
            except Exception:
                logger.exception("a request could not be admitted")
                self._outbox.append((job, EngineFailed("the engine could not take this request")))

    def _next_job(self) -> Job | None:
        with self._changed:
            if self._waiting and (len(self._rows) < self._max_rows or self._waiting[0].urgent):
                return self._waiting.popleft()
            return None

    def _prefill(self, job: Job) -> None:
        row = Row(job, self._engine.decode, self._engine.end_tokens)
        logits, prompt = self._engine.prefill(job.ids, job.adapter)
        if not self._take(row, logits[0], choose(logits, [row.choice])[0]):
            self._cache.adopt(prompt)
            self._rows.append(row)
            self._binding = None

    def _step(self) -> None:
        if not self._rows:
            return
        if self._binding is None:
            self._binding = self._engine.lora.bind([row.job.adapter for row in self._rows])
        logits = self._engine.step([row.last_token for row in self._rows], self._cache, self._binding)
        tokens = choose(logits, [row.choice for row in self._rows])
        for index in reversed(range(len(self._rows))):
            if self._take(self._rows[index], logits[index], tokens[index]):
                self._remove(index)

    def _take(self, row: Row, logits: Tensor, token: int | None) -> bool:
        """Give `row` its token; returns whether it is done. A row that fails takes no other with it."""
        if token is None:
            self._outbox.append((row.job, EngineFailed("the model gave numbers that are not finite")))
            return True
        try:
            if row.job.watch is not None:
                row.job.watch(logits, token)
            chunk = row.advance(token)
        except Exception:
            logger.exception("a row failed")
            self._outbox.append((row.job, EngineFailed("the engine could not go on with this request")))
            return True
        if chunk.text or chunk.finish_reason:
            self._outbox.append((row.job, chunk))
        return chunk.finish_reason is not None

    def _remove(self, index: int) -> None:
        self._cache.drop(index)
        self._rows[index] = self._rows[-1]
        self._rows.pop()
        self._binding = None

    def _hand_over(self) -> None:
        outbox, self._outbox = self._outbox, []
        ended = {job for job, item in outbox if isinstance(item, EngineFailed) or item.finish_reason}
        with self._changed:
            self._open -= ended
        if outbox:
            self._deliver(outbox)

    def _fail_all(self, error: EngineFailed) -> None:
        with self._changed:
            self._stopping = True
            open_jobs = [row.job for row in self._rows] + list(self._waiting)
            self._rows, self._waiting, self._cache = [], deque(), SlotCache(self._engine.device)
        self._outbox.extend((job, error) for job in open_jobs)
        self._hand_over()
