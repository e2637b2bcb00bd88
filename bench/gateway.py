"""A real gateway process for a measurement."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from adapters.home import Home

BRANCHLINE = str(Path(sys.executable).parent / "branchline")
_LAST_LINES = 20


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway that serves. What it says goes to `log`."""

    port: int
    pid: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@asynccontextmanager
async def gateway(
    home: Home, backend: str, base: str, *flags: str, variables: Mapping[str, str] | None = None
) -> AsyncIterator[Gateway]:
    """Serve `home` on a free port of loopback, from the moment live versions are warm to the end of the block."""
    log = home.folder / "gateway.log"
    process = await asyncio.create_subprocess_exec(
        *(BRANCHLINE, "serve", "--backend", backend, "--base", base, "--port", "0", "--home", str(home.folder)),
        *flags,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(variables or {})},
    )
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    reader = asyncio.create_task(_follow(process, log, port))
    try:
        yield Gateway(await port, process.pid, log)
    finally:
        with suppress(ProcessLookupError):
            process.terminate()
        await process.wait()
        await reader


async def _follow(process: asyncio.subprocess.Process, log: Path, port: asyncio.Future[int]) -> None:
    """Keep what the gateway says, to the end: a full pipe would stop it."""
    if process.stderr is None:
        raise RuntimeError("the gateway's stderr is not a pipe")
    last: deque[str] = deque(maxlen=_LAST_LINES)
    with log.open("ab", buffering=0) as file:
        async for line in process.stderr:
            file.write(line)
            last.append(line.decode(errors="replace"))
            if b"serving on http://127.0.0.1:" in line and not port.done():
                port.set_result(int(line.split(b"127.0.0.1:")[1].split(b"/")[0]))
    if not port.done():
        port.set_exception(RuntimeError(f"the gateway ended before it served:\n{''.join(last)}"))
