"""One start of a managed engine: its keeper, its port, its output, its end."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...errors import EngineFailed
from . import keeper
from .launch import HOST

GRACE_SECONDS = 8.0
TAIL_LINES = 400
MAX_LINE_BYTES = 64 * 1024
_LINE_END = re.compile(rb"[\r\n]+")  # progress bars end their lines with a carriage return


class EngineRun:
    """A running engine process. `ended` is done when nothing of it is left, with its exit code (negative: a signal).

    `hear` gets every line of its output; `tail` keeps the last ones, `heard_at` is the loop's time of the latest.
    """

    def __init__(self, port: int, process: asyncio.subprocess.Process, hear: Callable[[str], None]) -> None:
        self.port = port
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.heard_at = asyncio.get_running_loop().time()
        self._process = process
        self._hear = hear
        self._engine: int | None = None
        self._reader = asyncio.create_task(self._read())
        self.ended = asyncio.create_task(self._end_of_process())

    @classmethod
    async def begin(
        cls, port: int, command: Sequence[str], environment: Mapping[str, str], hear: Callable[[str], None]
    ) -> EngineRun:
        """Start `command` under a keeper. Raises `EngineFailed` where this machine starts no process."""
        words = [sys.executable, "-I", "-S", str(Path(keeper.__file__)), str(GRACE_SECONDS), *command]
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,  # Ctrl-C is for the gateway, which then ends the engine in order
            )
        except OSError as error:
            raise EngineFailed(f"the engine's process cannot be started: {error.strerror}") from None
        return cls(port, process, hear)

    async def end(self) -> None:
        """End it in order, by force after a while. Idempotent."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        done, _ = await asyncio.wait({self.ended}, timeout=GRACE_SECONDS + 2 * keeper.SWEEP_SECONDS)
        if not done:
            self.kill()
            with suppress(ProcessLookupError):
                self._process.kill()
            await asyncio.wait({self.ended})

    def kill(self) -> None:
        """End it now, as for an engine that hangs; `ended` follows when the keeper has swept up the rest."""
        if self._engine is not None and not self.ended.done():
            with suppress(ProcessLookupError, PermissionError):
                os.kill(self._engine, signal.SIGKILL)

    async def _end_of_process(self) -> int:
        status = await self._process.wait()
        if status < 0:  # the keeper itself was killed
            self._kill_orphans()
        await asyncio.wait({self._reader}, timeout=keeper.SWEEP_SECONDS)
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        return 128 - status if status > 128 else status

    def _kill_orphans(self) -> None:
        if self._engine is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._engine, signal.SIGKILL)

    async def _read(self) -> None:
        out = self._process.stdout
        if out is None:
            return
        rest = b""
        while chunk := await out.read(MAX_LINE_BYTES):
            *lines, rest = _LINE_END.split(rest + chunk)
            self._take(lines)
            if len(rest) > MAX_LINE_BYTES:
                self._take([rest])
                rest = b""
        self._take([rest])

    def _take(self, lines: Sequence[bytes]) -> None:
        self.heard_at = asyncio.get_running_loop().time()
        for line in filter(None, lines):
            if self._engine is None and line.isdigit():  # the keeper's only word
                self._engine = int(line)
                continue
            text = line.decode(errors="replace")
            self.tail.append(text)
            self._hear(text)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port
