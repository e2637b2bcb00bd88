"""An engine that speaks vLLM's wire on a real socket and does what a test tells it: answer, wait, break, lie, die.

Without orders it is a healthy engine with Branchline's plugin. An order is for the next request that is not one of
Branchline's own; orders are taken in the order they were given.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

BASE_ID = "base"
FINGERPRINT = "f" * 64
DEADLINE = 30.0  # seconds, for what must happen soon but at no stated time
Order = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that arrived."""

    path: str
    headers: Mapping[str, str]
    body: Mapping[str, Any]

    @property
    def is_ours(self) -> bool:
        """Whether Branchline sent it on its own account."""
        return self.headers.get("x-request-id", "").startswith("branchline")


class ProgrammableEngine:
    """`inert` versions answer as the base does; `unknown` ones are 404; `broken` ones cannot be loaded."""

    def __init__(self, *, plugin: bool = True, key: str | None = "k", **facts: object) -> None:
        self.plugin = plugin
        self.key = key
        self.facts = {"base_fingerprint": FINGERPRINT, "max_loras": 2, "max_cpu_loras": 4, **facts}
        self.models: list[str] | None = [BASE_ID]  # `None`: garbage
        self.takes_adapters = not plugin
        self.health: int | None = 200  # `None`: no answer
        self.core_hangs = False
        self.works = False  # counts a token whenever somebody looks
        self.tokens = 0
        self.gate: asyncio.Event | None = None  # holds Branchline's own requests
        self.inert: set[str] = set()
        self.unknown: set[str] = set()
        self.broken: set[str] = set()
        self.loaded: dict[str, str] = {}
        self.starts = 1
        self.seen: list[Seen] = []
        self.health_checks = 0
        self.gone = 0  # requests whose client went away
        self._orders: deque[Order] = deque()
        self._changed = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def calls(self) -> list[Seen]:
        """Requests of clients."""
        return [one for one in self.seen if not one.is_ours]

    def order(self, *orders: Order) -> None:
        self._orders.extend(orders)

    async def until(self, holds: Callable[[], bool]) -> None:
        """Wait until something that happened here makes `holds` true."""
        async with asyncio.timeout(DEADLINE):
            while not holds():
                await self._changed.wait()

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/health", self._health)
        app.router.add_get("/branchline", self._facts)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/v1/load_lora_adapter", self._load)
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/tokenize"):
            app.router.add_post(path, self._infer)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]

    async def kill(self) -> None:
        """As `kill -9` does: every connection is reset, nobody listens any more."""
        runner, self._runner = self._runner, None
        if runner is None:
            return
        for site in list(runner.sites):
            await site.stop()
        assert runner.server is not None
        for connection in runner.server.connections:
            if connection.transport is not None:
                connection.transport.abort()
        await runner.cleanup()

    async def restart(self) -> None:
        """A new start on the same port: nothing is loaded."""
        await self.kill()
        self.forget()
        await self.start()

    def forget(self) -> None:
        """As if it had restarted between two requests."""
        self.starts += 1
        self.loaded.clear()

    async def _health(self, _request: web.Request) -> web.Response:
        self.health_checks += 1
        self._tell()
        if self.health is None:
            await asyncio.Event().wait()
        return web.Response(status=self.health or 200)

    async def _facts(self, request: web.Request) -> web.Response:
        if not self._has_key(request):
            return _refusal(401, "Invalid or missing API key")
        if not self.plugin:
            return _refusal(404, "Not Found")
        return web.json_response({"branchline": "0", "started": f"start-{self.starts}", **self.facts})

    async def _models(self, request: web.Request) -> web.Response:
        if not self._has_key(request):
            return _refusal(401, "Invalid or missing API key")
        if self.models is None:
            return web.Response(text="<html>")
        cards = [{"id": name, "parent": None} for name in self.models]
        return web.json_response({"data": [*cards, *({"id": name, "parent": BASE_ID} for name in self.loaded)]})

    async def _metrics(self, _request: web.Request) -> web.Response:
        self.tokens += self.works
        counters = (
            f'vllm:generation_tokens_total{{engine="0"}} {self.tokens}.0\nprocess_start_time_seconds {self.starts}.5\n'
        )
        return web.Response(text="# HELP x\n" + counters)

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(Seen(request.path, request.headers, body))
        if not self.takes_adapters:
            return _refusal(404, "Not Found")
        if body["lora_name"] in self.loaded:
            return _refusal(400, f"The lora adapter '{body['lora_name']}' has already been loaded.")
        if body["lora_name"] in self.broken:
            return _refusal(404, f"Loading lora x failed: No adapter found for {body['lora_path']}", "NotFoundError")
        self.loaded[body["lora_name"]] = body["lora_path"]
        return web.Response(text="Success")

    async def _infer(self, request: web.Request) -> web.StreamResponse:
        seen = Seen(request.path, request.headers, await request.json())
        self._tell(seen)
        try:
            if self.core_hangs:
                await asyncio.Event().wait()
            if self.gate is not None and seen.is_ours:
                await self.gate.wait()
            refusal = self._refusal_of(request, str(seen.body["model"]))
            if refusal is not None:
                return refusal
            if self._orders and not seen.is_ours:
                return await self._orders.popleft()(request)
            return await self._default(request, seen)
        except asyncio.CancelledError:
            self.gone += 1
            self._tell()
            raise

    def _refusal_of(self, request: web.Request, name: str) -> web.Response | None:
        if not self._has_key(request):
            return _refusal(401, "Invalid or missing API key")
        if name == BASE_ID:
            return None
        if name in self.broken:
            return _refusal(400, f"LoRA adapter '{name}' was found but could not be loaded.")
        if name in self.unknown or not (self.plugin or name in self.loaded):
            return _refusal(404, f"The model `{name}` does not exist. Valid aliases: base.", "NotFoundError", "model")
        self.loaded.setdefault(name, "")
        return None

    async def _default(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        name = str(seen.body["model"])
        if seen.body.get("stream"):
            return await stream(*frames(name, f"[{name}]"))(request)
        logprob = -0.5 if name == BASE_ID or name in self.inert else -1.5
        top = {"token_id:1": logprob, "token_id:2": -3.0}
        if "messages" in seen.body:
            listed = [{"token": token, "logprob": value} for token, value in top.items()]
            content = [{"token": "token_id:1", "logprob": logprob, "top_logprobs": listed}]
            said = {"message": {"role": "assistant", "content": f"[{name}]"}, "logprobs": {"content": content}}
        else:
            said = {
                "text": f"[{name}]",
                "logprobs": {"tokens": ["token_id:1"], "token_logprobs": [logprob], "top_logprobs": [top]},
            }
        return web.json_response({"model": name, "choices": [{"index": 0, "finish_reason": "stop", **said}]})

    def _has_key(self, request: web.Request) -> bool:
        return self.key is None or request.headers.get("authorization") == f"Bearer {self.key}"

    def _tell(self, seen: Seen | None = None) -> None:
        if seen is not None:
            self.seen.append(seen)
        self._changed.set()
        self._changed = asyncio.Event()


def frames(name: str, *texts: str) -> list[bytes]:
    """The events of a streamed chat answer, `[DONE]` included."""
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": ""}, *({"content": text} for text in texts)]
    events = [{"id": "c", "model": name, "choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    return [*(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events), b"data: [DONE]\n\n"]


def error(status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> Order:
    """An error in vLLM's shape."""

    async def act(_request: web.Request) -> web.StreamResponse:
        return _refusal(status, message, kind, param)

    return act


def answer(body: bytes, *, status: int = 200, content_type: str = "application/json") -> Order:
    """Exactly these bytes."""

    async def act(_request: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=body, headers={"content-type": content_type})

    return act


def stream(*pieces: bytes | asyncio.Event, then: Order | None = None) -> Order:
    """Server-sent events; an event of asyncio holds what follows until it is set. `then` ends it otherwise."""

    async def act(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for piece in pieces:
            if isinstance(piece, bytes):
                await response.write(piece)
            else:
                await piece.wait()
        return response if then is None else await then(request)

    return act


def waiting_for(gate: asyncio.Event, order: Order) -> Order:
    """`order`, once the gate is open."""

    async def act(request: web.Request) -> web.StreamResponse:
        await gate.wait()
        return await order(request)

    return act


def in_turn(*orders: Order) -> Order:
    """The first order for the first request that comes, to whichever engine, then the next."""
    left = iter(orders)

    async def act(request: web.Request) -> web.StreamResponse:
        return await next(left)(request)

    return act


async def hang(_request: web.Request) -> web.StreamResponse:
    """No answer at all."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


async def reset(request: web.Request) -> web.StreamResponse:
    """The connection breaks."""
    assert request.transport is not None
    request.transport.abort()
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


@asynccontextmanager
async def engines(*engines: ProgrammableEngine) -> AsyncIterator[Sequence[ProgrammableEngine]]:
    """All of them listening, until the end of the block."""
    for engine in engines:
        await engine.start()
    try:
        yield engines
    finally:
        for engine in engines:
            await engine.kill()


def _refusal(status: int, message: str, kind: str = "BadRequestError", param: str | None = None) -> web.Response:
    document = {"message": message, "type": kind, "param": param, "code": status}
    return web.json_response({"error": document}, status=status)
