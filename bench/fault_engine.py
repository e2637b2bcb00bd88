"""A stand-in for a vLLM engine, in a process of its own, that fails as it is told: slow, garbage, cut, broken.

    python -m bench.fault_engine --port PORT --fingerprint BASE_FINGERPRINT

Each line on its standard input is what it does from then on (`Behaviour`); with the end of its input it ends.
Killing and stopping it is for whoever started it. Branchline's own requests, such as proofs, are always answered well.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args
from urllib.request import urlopen

from aiohttp import web

from tests.programmable_engine import Order, ProgrammableEngine, Seen, answer, error, frames, reset

Behaviour = Literal["healthy", "slow", "garbage", "fails", "breaks", "cuts"]
WORDS = 8  # events of a stream
PACE_SECONDS = 0.01  # before each of them, and before a whole answer
SLOW_SECONDS = 0.5
START_SECONDS = 30.0


class FaultEngine(ProgrammableEngine):
    """Listens on `port`; `behaviour` holds for every request of a client."""

    def __init__(self, port: int, fingerprint: str) -> None:
        super().__init__(key=None, base_fingerprint=fingerprint, max_loras=8, max_cpu_loras=64)
        self._port = port
        self.starts = os.getpid()  # another one at each start
        self.behaviour: Behaviour = "healthy"

    async def _default(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        self.seen.clear()
        if seen.is_ours:
            return await super()._default(request, seen)
        name = str(seen.body["model"])
        if seen.body.get("stream"):
            return await self._stream(request, name)
        return await self._whole(request, seen)

    async def _whole(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        await asyncio.sleep(SLOW_SECONDS if self.behaviour == "slow" else PACE_SECONDS)
        if self.behaviour == "cuts":
            return await _half(request)
        order = _WRONG.get(self.behaviour)
        return await order(request) if order else await super()._default(request, seen)

    async def _stream(self, request: web.Request, name: str) -> web.StreamResponse:
        order = _WRONG.get(self.behaviour)
        if order is not None:
            return await order(request)
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        for number, piece in enumerate(frames(name, *["word "] * WORDS)):
            await asyncio.sleep(SLOW_SECONDS if self.behaviour == "slow" and number == 0 else PACE_SECONDS)
            if self.behaviour == "cuts" and number == WORDS // 2:
                return await reset(request)
            await response.write(piece)
        return response


async def _half(request: web.Request) -> web.StreamResponse:
    """A whole answer that ends before its length is reached."""
    response = web.StreamResponse(headers={"content-type": "application/json", "content-length": "200"})
    await response.prepare(request)
    await response.write(b'{"choices": [')
    return await reset(request)


_WRONG: Mapping[Behaviour, Order] = {
    "garbage": answer(b"<html>\x00\xff"),
    "fails": error(500, "EngineCore encountered an issue", "InternalServerError"),
    "breaks": reset,
}


@dataclass(slots=True)
class EngineProcess:
    """One such engine, as the process that started it sees it."""

    port: int
    fingerprint: str
    process: subprocess.Popen[str]

    @classmethod
    def start(cls, port: int, fingerprint: str) -> EngineProcess:
        """It listens when this returns."""
        return cls(port, fingerprint, _spawn(port, fingerprint))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def behave(self, behaviour: Behaviour) -> None:
        if self.process.stdin is None:
            raise RuntimeError("the engine's standard input is not a pipe")
        self.process.stdin.write(f"{behaviour}\n")
        self.process.stdin.flush()

    def slow_down(self) -> None:
        self.behave("slow")

    def kill(self) -> None:
        """SIGKILL, as the kernel does where memory is short."""
        self.process.kill()
        self.process.wait()
        if self.process.stdin is not None:
            self.process.stdin.close()

    def restart(self) -> None:
        """On the same port; nothing is loaded."""
        self.kill()
        self.process = _spawn(self.port, self.fingerprint)


def _spawn(port: int, fingerprint: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "bench.fault_engine", "--port", str(port), "--fingerprint", fingerprint]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True)
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return process
        time.sleep(0.02)
    process.kill()
    raise RuntimeError(f"no engine came up on port {port}")


def main() -> None:
    """Serve until the standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--fingerprint", required=True)
    given = parser.parse_args()
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # that clients leave is what happens here
    asyncio.run(_serve(FaultEngine(given.port, given.fingerprint)))


async def _serve(engine: FaultEngine) -> None:
    await engine.start()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := (await reader.readline()).decode().strip():
        engine.behaviour = next(word for word in get_args(Behaviour) if word == line)


if __name__ == "__main__":
    main()
