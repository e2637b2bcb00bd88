"""One encoder for many requests at once: those that wait together share a batch, off the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from ...errors import EncoderOverloaded, EncoderUnavailable
from ..encoding import Encoder, EncoderRef
from ..features import Floats

log = logging.getLogger("branchline.encoder")
BATCH_TEXTS = 8  # a batch's first text waits for its last, so that larger ones would only add latency
MAX_WAITING = 256  # short texts wait a quarter of a second then, the longest some seconds


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    texts: Sequence[str]
    answer: asyncio.Future[Floats]


class BatchedEncoder:
    """Lives on one event loop; the encoder runs in one thread of its own.

    No timer: a request that finds the thread idle starts at once, those that come while it works are the next batch.
    """

    def __init__(self, encoder: Encoder, *, batch_texts: int = BATCH_TEXTS, max_waiting: int = MAX_WAITING) -> None:
        self._encoder = encoder
        self._batch_texts = batch_texts
        self._max_waiting = max_waiting
        self._waiting: deque[_Request] = deque()
        self._running: asyncio.Future[Floats] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="encoder")
        self._stopped = False
        self._failing = False

    @property
    def ref(self) -> EncoderRef:
        return self._encoder.ref

    @property
    def waiting(self) -> int:
        """Texts that wait for the batch after the one that runs."""
        return sum(len(request.texts) for request in self._waiting)

    async def encode(self, texts: Sequence[str]) -> Floats:
        """(texts, dimension) float32, rows of length 1. Cancelled before its batch began, it costs nothing.

        Raises `EncoderOverloaded` where more than `max_waiting` texts would wait, `EncoderUnavailable` once
        stopped and where the encoder fails, whatever at.
        """
        if self._stopped:
            raise EncoderUnavailable("the encoder has stopped")
        if self.waiting + len(texts) > self._max_waiting:
            raise EncoderOverloaded(f"{self.waiting} texts wait for the encoder, at most {self._max_waiting} may")
        request = _Request(texts, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._start()
        try:
            return await request.answer
        finally:
            if request in self._waiting:
                self._waiting.remove(request)

    async def stop(self) -> None:
        """Refuse what waits, let the running batch end, and end the thread."""
        self._stopped = True
        while self._waiting:
            _settle(self._waiting.popleft(), EncoderUnavailable("the encoder has stopped"))
        if self._running is not None:
            await asyncio.wait([self._running])
        self._thread.shutdown()

    def _start(self) -> None:
        if self._running is not None or not self._waiting:
            return
        batch = [self._waiting.popleft()]
        while self._waiting and _size(batch) + len(self._waiting[0].texts) <= self._batch_texts:
            batch.append(self._waiting.popleft())
        texts = [text for request in batch for text in request.texts]
        loop = asyncio.get_running_loop()
        self._running = loop.run_in_executor(self._thread, self._encoder.encode, texts)
        self._running.add_done_callback(partial(self._done, batch))

    def _done(self, batch: Sequence[_Request], ran: asyncio.Future[Floats]) -> None:
        self._running = None
        self._start()
        error = self._failed(ran.exception())
        start = 0
        for request in batch:
            end = start + len(request.texts)
            _settle(request, error or ran.result()[start:end])
            start = end

    def _failed(self, error: BaseException | None) -> BaseException | None:
        """Said once, until it works again, and without its message: a tokenizer's repeats the text."""
        if error is not None and not self._failing:
            log.error("the encoder %s fails: %s; the base answers meanwhile", self.ref.name, type(error).__name__)
        self._failing = error is not None
        if error is None or isinstance(error, EncoderUnavailable):
            return error
        return EncoderUnavailable(f"the encoder fails: {type(error).__name__}")


def _size(batch: Sequence[_Request]) -> int:
    return sum(len(request.texts) for request in batch)


def _settle(request: _Request, outcome: Floats | BaseException) -> None:
    if request.answer.done():
        return  # cancelled while its batch ran
    if isinstance(outcome, BaseException):
        request.answer.set_exception(outcome)
    else:
        request.answer.set_result(outcome)
