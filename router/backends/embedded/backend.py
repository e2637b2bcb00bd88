"""The embedded engine: `Backend`'s contract over a decoder thread."""

from __future__ import annotations

import asyncio
import functools
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from adapters.base import Base
from adapters.probes import NO_PROBES, Probes
from adapters.types import AdapterVersion

from ...errors import AdapterUnavailable, EngineFailed, EngineOverloaded, NotApplied
from ...frames import Events, reply, token_reply
from ...sampling import Sampling
from ...types import Call, EngineStatus, Reply
from ..base import refuse_drain
from .chat import call_token_ids, probe_token_ids
from .decoder import Decoder
from .engine import Engine, load_engine
from .folder import read_adapter
from .lora import Adapter
from .proof import PROBE_TOKENS, PROBES, Trace, is_applied
from .row import Item, Job

_GREEDY = Sampling(max_tokens=None, temperature=0.0, top_p=1.0, seed=0, stop=(), include_usage=False)


class EmbeddedBackend:
    """Keeps the contract of `Backend`. `device` defaults to the GPU where there is one.

    At most `max_rows` sequences are decoded at once and `max_waiting` queue behind them. `threads` is how many CPU
    threads a forward uses: by default all cores but one, which the event loop needs (a forward whose threads wait for
    a core that is taken is many times slower).
    """

    def __init__(
        self,
        base: Base,
        *,
        max_rows: int = 32,
        max_waiting: int = 256,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        self._base = base
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._device = device
        self._threads = threads
        self._engine: Engine | None = None
        self._decoder: Decoder | None = None
        self._base_traces: list[Trace] = []
        self._adapters: dict[str, Adapter] = {}
        self._loading: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def base_id(self) -> str:
        return self._base.id

    @property
    def base_fingerprint(self) -> str | None:
        return self._base.fingerprint

    @property
    def capacity(self) -> int | None:
        return None

    @property
    def engines(self) -> list[EngineStatus]:
        up = self._decoder is not None and self._decoder.alive
        return [
            EngineStatus(
                "embedded",
                "up" if up else "down",
                outstanding=self.running,
                resident=len(self._adapters),
                base_fingerprint=self._base.fingerprint,
            )
        ]

    @property
    def running(self) -> int:
        """Sequences being decoded or waiting."""
        return self._decoder.running if self._decoder else 0

    async def start(self) -> None:
        if await self.ready():
            return
        self._engine = await asyncio.to_thread(load_engine, self._base.folder, self._device)
        self._decoder = Decoder(
            self._engine,
            functools.partial(_deliver, asyncio.get_running_loop()),
            max_rows=self._max_rows,
            max_waiting=self._max_waiting,
            threads=self._threads or max(1, (os.cpu_count() or 1) - 1),
        )
        self._decoder.start()
        try:
            (self._base_traces,) = await self._answer_probes([None])
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        decoder, self._decoder, self._engine = self._decoder, None, None
        self._adapters.clear()
        if decoder is not None:
            await asyncio.to_thread(decoder.stop)

    async def ready(self) -> bool:
        return self._decoder is not None and self._decoder.alive

    def is_resident(self, engine_name: str) -> bool:
        return engine_name in self._adapters

    async def unload(self, engine_name: str) -> None:
        self._adapters.pop(engine_name, None)

    async def load(self, version: AdapterVersion, folder: Path, probes: Probes = NO_PROBES) -> None:
        name = version.engine_name
        async with self._loading[name]:
            if name in self._adapters:
                return
            try:
                engine, decoder = self._up()
                adapter = await asyncio.to_thread(read_adapter, folder, engine)
                changed, base = await self._answer_probes([adapter, None])
            except EngineFailed as error:
                raise AdapterUnavailable(f"{name} could not be proved to be applied: {error.message}") from error
            if not is_applied(changed, base, self._base_traces):
                raise NotApplied(f"{name} changes nothing: with it the base answers as it does without it")
            if decoder is self._decoder:
                self._adapters[name] = adapter

    async def drain(self, name: str) -> None:
        refuse_drain("embedded", name)

    async def resume(self, name: str) -> None:
        refuse_drain("embedded", name)

    async def open(self, call: Call) -> Reply:
        engine, decoder = self._up()
        adapter = self._adapters.get(call.engine_name)
        if adapter is None and call.engine_name != self._base.id:
            raise AdapterUnavailable(f"{call.engine_name} is not resident")
        if call.endpoint == "tokenize":
            (tokens,) = await asyncio.to_thread(call_token_ids, engine.tokenizer, engine.vocabulary, call)
            return token_reply(tokens, engine.context_length)
        sampling = Sampling.parse(call.body, call.endpoint, engine.defaults)
        prompts = await asyncio.to_thread(call_token_ids, engine.tokenizer, engine.vocabulary, call)
        if len(prompts) > self._max_rows + self._max_waiting:
            raise EngineOverloaded(f"the request holds {len(prompts)} prompts, more than this engine takes at once")
        budgets = [sampling.budget(len(ids), engine.context_length) for ids in prompts]
        inbox = _Inbox()
        jobs = [
            Job(ids, adapter, sampling, budget, functools.partial(inbox.put, index))
            for index, (ids, budget) in enumerate(zip(prompts, budgets, strict=True))
        ]
        decoder.submit(jobs)
        return reply(
            call,
            inbox.events(len(jobs)),
            choices=len(jobs),
            include_usage=sampling.include_usage,
            release=functools.partial(_cancel, jobs),
        )

    async def _answer_probes(self, adapters: Sequence[Adapter | None]) -> list[list[Trace]]:
        """Per adapter (`None`: the base) a trace for each probe, all decoded together beside the traffic."""
        engine, decoder = self._up()
        prompts = [await asyncio.to_thread(probe_token_ids, engine.tokenizer, probe) for probe in PROBES]
        inbox = _Inbox()
        traces = [[Trace() for _ in prompts] for _ in adapters]
        jobs = [
            Job(ids, adapter, _GREEDY, PROBE_TOKENS, functools.partial(inbox.put, 0), watch=trace.watch, urgent=True)
            for adapter, row in zip(adapters, traces, strict=True)
            for ids, trace in zip(prompts, row, strict=True)
        ]
        decoder.submit(jobs)
        try:
            async for _ in inbox.events(len(jobs)):
                pass
        finally:
            _cancel(jobs)
        return traces

    def _up(self) -> tuple[Engine, Decoder]:
        if self._engine is None or self._decoder is None or not self._decoder.alive:
            raise EngineFailed("the engine is not running")
        return self._engine, self._decoder


class _Inbox:
    """What the decoder hands over for one call, on the event loop."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[int, Item]] = asyncio.Queue()

    def put(self, index: int, item: Item) -> None:
        self._queue.put_nowait((index, item))

    async def events(self, jobs: int) -> Events:
        """Chunks until every job has finished; raises the first failure."""
        while jobs:
            index, item = await self._queue.get()
            if isinstance(item, EngineFailed):
                raise item
            jobs -= item.finish_reason is not None
            yield index, item


def _deliver(loop: asyncio.AbstractEventLoop, items: list[tuple[Job, Item]]) -> None:
    if not loop.is_closed():  # else nobody is left to hear
        loop.call_soon_threadsafe(_put_all, items)


def _put_all(items: list[tuple[Job, Item]]) -> None:
    for job, item in items:
        job.sink(item)


def _cancel(jobs: list[Job]) -> None:
    for job in jobs:
        job.cancelled = True
