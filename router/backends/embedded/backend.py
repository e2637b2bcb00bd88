"""The embedded engine: `Backend`'s contract over a decoder thread."""

from __future__ import annotations

import asyncio
import functools
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.base import Base
from adapters.rows import Message
from adapters.types import AdapterVersion

from ...errors import AdapterUnavailable, EngineFailed, EngineOverloaded, InvalidRequest
from ...frames import Events, reply
from ...sampling import Sampling
from ...types import Call, Reply
from ..prompt import TextOrIds, parse_messages, parse_prompts
from .chat import prompt_token_ids

if TYPE_CHECKING:
    from .decoder import Decoder
    from .engine import Engine
    from .lora import Adapter
    from .proof import Trace
    from .row import Item, Job

_GREEDY = Sampling(max_tokens=None, temperature=0.0, top_p=1.0, seed=0, stop=(), include_usage=False)


class EmbeddedBackend:
    """Keeps the contract of `Backend`. `device` defaults to the GPU where there is one.

    At most `max_rows` sequences are decoded at once and `max_waiting` queue behind them.
    """

    def __init__(self, base: Base, *, max_rows: int = 32, max_waiting: int = 256, device: str | None = None) -> None:
        self._base = base
        self._max_rows = max_rows
        self._max_waiting = max_waiting
        self._device = device
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
    def running(self) -> int:
        """Sequences being decoded or waiting."""
        return self._decoder.running if self._decoder else 0

    async def start(self) -> None:
        if await self.ready():
            return
        engine = await asyncio.to_thread(_load, self._base.folder, self._device)
        self._engine = engine
        self._decoder = _start_decoder(engine, asyncio.get_running_loop(), self._max_rows, self._max_waiting)
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

    async def load(self, version: AdapterVersion, folder: Path) -> None:
        name = version.engine_name
        async with self._loading[name]:
            if name in self._adapters:
                return
            engine, _ = self._up()
            try:
                adapter = await asyncio.to_thread(_read, folder, engine)
                await self._prove(name, adapter)
            except EngineFailed as error:
                raise AdapterUnavailable(f"{name} could not be proved to be applied: {error.message}") from error
            self._adapters[name] = adapter

    async def _prove(self, name: str, adapter: Adapter) -> None:
        from .proof import is_applied

        changed, base = await self._answer_probes([adapter, None])
        if not is_applied(changed, base, self._base_traces):
            raise AdapterUnavailable(f"{name} changes nothing: the base answers the same with it and without it")

    async def _answer_probes(self, adapters: list[Adapter | None]) -> list[list[Trace]]:
        """Per adapter, a trace for each probe, all decoded together."""
        from .proof import PROBE_TOKENS, PROBES, Trace
        from .row import Job

        engine, decoder = self._up()
        prompts = [await asyncio.to_thread(_probe_ids, engine, probe) for probe in PROBES]
        queue: asyncio.Queue[tuple[int, Item]] = asyncio.Queue()
        traces = [[Trace() for _ in prompts] for _ in adapters]
        jobs = [
            Job(ids, adapter, _GREEDY, PROBE_TOKENS, _sink(queue, index), watch=trace.watch, urgent=True)
            for adapter, row in zip(adapters, traces, strict=True)
            for index, (ids, trace) in enumerate(zip(prompts, row, strict=True))
        ]
        decoder.submit(jobs)
        async for _ in _events(queue, len(jobs)):
            pass
        return traces

    async def open(self, call: Call) -> Reply:
        engine, decoder = self._up()
        adapter = self._adapters.get(call.engine_name)
        if adapter is None and call.engine_name != self._base.id:
            raise AdapterUnavailable(f"{call.engine_name} is not resident")
        sampling = Sampling.parse(call.body, call.endpoint, engine.defaults)
        prompts = await asyncio.to_thread(_prompt_ids, engine, call)
        queue: asyncio.Queue[tuple[int, Item]] = asyncio.Queue()
        jobs = _jobs(prompts, adapter, sampling, engine, queue)
        if len(jobs) > self._max_rows + self._max_waiting:
            raise EngineOverloaded(f"the request holds {len(jobs)} prompts, more than this engine takes")
        decoder.submit(jobs)
        return reply(
            call,
            _events(queue, len(jobs)),
            choices=len(jobs),
            include_usage=sampling.include_usage,
            release=functools.partial(_cancel, jobs),
        )

    def _up(self) -> tuple[Engine, Decoder]:
        if self._engine is None or self._decoder is None or not self._decoder.alive:
            raise EngineFailed("the engine is not running")
        return self._engine, self._decoder


def _load(folder: Path, device: str | None) -> Engine:
    from . import folder as _  # noqa: F401 - PEFT's import belongs to the start, not to the first load
    from .engine import load_engine

    return load_engine(folder, device)


def _start_decoder(engine: Engine, loop: asyncio.AbstractEventLoop, max_rows: int, max_waiting: int) -> Decoder:
    from .decoder import Decoder

    def deliver(items: list[tuple[Job, Item]]) -> None:
        if not loop.is_closed():  # else nobody is left to hear
            loop.call_soon_threadsafe(_hand_out, items)

    decoder = Decoder(engine, deliver, max_rows=max_rows, max_waiting=max_waiting)
    decoder.start()
    return decoder


def _hand_out(items: list[tuple[Job, Item]]) -> None:
    for job, item in items:
        job.sink(item)


def _read(folder: Path, engine: Engine) -> Adapter:
    from .folder import read_adapter

    return read_adapter(
        folder, engine.lora.linears, device=engine.device, dtype=engine.dtype, output_layer=engine.output_layer
    )


def _probe_ids(engine: Engine, text: str) -> tuple[int, ...]:
    if engine.tokenizer.chat_template:
        return tuple(prompt_token_ids(engine.tokenizer, [Message("user", text)]))
    return _text_ids(engine, text)


def _prompt_ids(engine: Engine, call: Call) -> list[tuple[int, ...]]:
    if call.endpoint == "completions":
        return [_completion_ids(engine, prompt) for prompt in parse_prompts(call.body)]
    from jinja2 import TemplateError

    messages = parse_messages(call.body)
    if not engine.tokenizer.chat_template:
        raise InvalidRequest("this base has no chat template; use /v1/completions", param="messages")
    try:
        return [tuple(prompt_token_ids(engine.tokenizer, messages))]
    except TemplateError as error:
        raise InvalidRequest(f"the base's chat template refuses these messages: {error}", param="messages") from error


def _completion_ids(engine: Engine, prompt: TextOrIds) -> tuple[int, ...]:
    ids = _text_ids(engine, prompt) if isinstance(prompt, str) else prompt
    if not ids:
        raise InvalidRequest("prompt holds no tokens", param="prompt")
    if max(ids) >= engine.vocabulary:
        raise InvalidRequest(
            f"prompt holds token id {max(ids)}, the vocabulary has {engine.vocabulary}", param="prompt"
        )
    return ids


def _text_ids(engine: Engine, text: str) -> tuple[int, ...]:
    return tuple(engine.tokenizer(text)["input_ids"])


def _jobs(
    prompts: list[tuple[int, ...]],
    adapter: Adapter | None,
    sampling: Sampling,
    engine: Engine,
    queue: asyncio.Queue[tuple[int, Item]],
) -> list[Job]:
    from .row import Job

    return [
        Job(ids, adapter, sampling, sampling.budget(len(ids), engine.context_length), _sink(queue, index))
        for index, ids in enumerate(prompts)
    ]


def _sink(queue: asyncio.Queue[tuple[int, Item]], index: int) -> Callable[[Item], None]:
    return lambda item: queue.put_nowait((index, item))


def _cancel(jobs: list[Job]) -> None:
    for job in jobs:
        job.cancelled = True


async def _events(queue: asyncio.Queue[tuple[int, Item]], jobs: int) -> Events:
    """Chunks until every job has finished; raises the first failure."""
    while jobs:
        index, item = await queue.get()
        if isinstance(item, EngineFailed):
            raise item
        jobs -= item.finish_reason is not None
        yield index, item
