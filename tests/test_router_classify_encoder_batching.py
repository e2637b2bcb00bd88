"""Requests share an encoder's batches; none waits for a timer, none blocks the loop, none is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from router.classify.encoder.batching import BatchedEncoder
from router.classify.encoding import EncoderRef
from router.classify.features import Floats
from router.errors import EncoderOverloaded, EncoderUnavailable, wire_for

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class GatedEncoder:
    """Notes each batch, then waits for the gate; a text's vector is its number. `broken` is raised instead."""

    ref: EncoderRef = field(default_factory=lambda: EncoderRef("gated", "0" * 64, "fp32", 1, 8))
    batches: list[list[str]] = field(default_factory=list)
    gate: threading.Event = field(default_factory=threading.Event)
    broken: Exception | None = None
    _entered: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def encode(self, texts: Sequence[str]) -> Floats:
        self.batches.append(list(texts))
        self._entered.release()
        assert self.gate.wait(30)
        if self.broken is not None:
            raise self.broken
        return np.array([[float(text)] for text in texts], dtype=np.float32).reshape(len(texts), 1)

    async def entered(self) -> None:
        """The next batch has begun."""
        assert await asyncio.to_thread(self._entered.acquire, timeout=30)


@asynccontextmanager
async def busy(encoder: GatedEncoder, **limits: int) -> AsyncIterator[tuple[BatchedEncoder, asyncio.Task[Floats]]]:
    """A batched encoder whose thread is held up by the text "0"; stopped on the way out."""
    batched = BatchedEncoder(encoder, **limits)
    first = asyncio.create_task(batched.encode(["0"]))
    await encoder.entered()
    try:
        yield batched, first
    finally:
        encoder.gate.set()
        await batched.stop()


async def waiting(batched: BatchedEncoder, *texts: str) -> asyncio.Task[Floats]:
    """A request that waits for the batch after the running one."""
    before = batched.waiting
    task = asyncio.create_task(batched.encode(texts))
    await asyncio.sleep(0)  # a new task runs up to where it waits
    assert batched.waiting == before + len(texts)
    return task


async def test_a_request_that_finds_the_encoder_idle_starts_at_once_and_alone() -> None:
    encoder = GatedEncoder()
    async with busy(encoder) as (_, first):
        assert encoder.batches == [["0"]]  # with nobody beside it and the gate still shut: nothing else was waited for
        encoder.gate.set()
        assert (await first).tolist() == [[0.0]]


async def test_requests_that_wait_together_share_a_batch_and_each_gets_its_own_rows() -> None:
    encoder = GatedEncoder()
    async with busy(encoder) as (batched, first):
        second, third = await waiting(batched, "1", "2"), await waiting(batched, "3")
        encoder.gate.set()
        assert [(await one).tolist() for one in (first, second, third)] == [[[0.0]], [[1.0], [2.0]], [[3.0]]]
    assert encoder.batches == [["0"], ["1", "2", "3"]]


async def test_the_event_loop_runs_on_while_the_encoder_works() -> None:
    async with busy(GatedEncoder()) as (_, first):
        assert await asyncio.to_thread(lambda: "the loop served this")
        assert not first.done()


async def test_a_batch_takes_whole_requests_up_to_its_size_and_a_larger_one_goes_alone() -> None:
    encoder = GatedEncoder()
    async with busy(encoder, batch_texts=3) as (batched, _):
        tasks = [await waiting(batched, *texts) for texts in (["1", "2"], ["3", "4"], ["5", "6", "7", "8"], ["9"])]
        encoder.gate.set()
        await asyncio.gather(*tasks)
    assert encoder.batches[1:] == [["1", "2"], ["3", "4"], ["5", "6", "7", "8"], ["9"]]


async def test_a_cancelled_request_leaves_the_batch_it_waits_for() -> None:
    encoder = GatedEncoder()
    async with busy(encoder) as (batched, _):
        gone, stays = await waiting(batched, "1"), await waiting(batched, "2")
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert batched.waiting == 1
        encoder.gate.set()
        assert (await stays).tolist() == [[2.0]]
    assert encoder.batches == [["0"], ["2"]]


async def test_a_request_cancelled_while_its_batch_runs_takes_nothing_from_the_others() -> None:
    encoder = GatedEncoder()
    async with busy(encoder) as (batched, first):
        second = await waiting(batched, "1")
        first.cancel()
        encoder.gate.set()
        assert (await second).tolist() == [[1.0]]


async def test_beyond_its_bound_the_queue_refuses_with_429() -> None:
    encoder = GatedEncoder()
    async with busy(encoder, max_waiting=2) as (batched, _):
        waits = await waiting(batched, "1", "2")
        with pytest.raises(EncoderOverloaded, match="at most 2") as refused:
            await batched.encode(["3"])
        encoder.gate.set()
        assert (await waits).tolist() == [[1.0], [2.0]]
    assert wire_for(refused.value).status == 429


@pytest.mark.parametrize(
    ("error", "told"),
    [(EncoderUnavailable("broken"), "broken"), (RuntimeError("a text of somebody's"), "fails: RuntimeError")],
)
async def test_an_error_reaches_its_own_batch_alone_and_is_said_once_without_a_text(
    error: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    encoder = GatedEncoder(broken=error)
    async with busy(encoder) as (batched, first):
        encoder.gate.set()
        for failing in (first, batched.encode(["0"])):
            with pytest.raises(EncoderUnavailable, match=told) as raised:
                await failing
            assert "somebody" not in str(raised.value)
        encoder.broken = None
        assert (await batched.encode(["1"])).tolist() == [[1.0]]
    (said,) = caplog.messages
    assert said == f"the encoder gated fails: {type(error).__name__}; the base answers meanwhile"


async def test_stopping_refuses_what_waits_and_leaves_no_thread_and_no_task() -> None:
    encoder = GatedEncoder()
    tasks, threads = asyncio.all_tasks(), set(threading.enumerate())
    async with busy(encoder) as (batched, first):
        second = await waiting(batched, "1")
    assert (await first).tolist() == [[0.0]]
    with pytest.raises(EncoderUnavailable, match="stopped"):
        await second
    with pytest.raises(EncoderUnavailable, match="stopped"):
        await batched.encode(["2"])
    assert asyncio.all_tasks() == tasks
    assert not [one for one in set(threading.enumerate()) - threads if one.name.startswith("encoder")]
