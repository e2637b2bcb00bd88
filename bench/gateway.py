"""A real gateway process for a measurement."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from adapters.home import Home

BRANCHLINE = str(Path(sys.executable).parent / "branchline")


@asynccontextmanager
async def gateway(home: Home, backend: str, base: str) -> AsyncIterator[int]:
    """Serve `home` on a free port of loopback, and yield that port once live versions are warm."""
    process = await asyncio.create_subprocess_exec(
        *(BRANCHLINE, "serve", "--backend", backend, "--base", base, "--port", "0", "--home", str(home.folder)),
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield await _port(process)
    finally:
        process.terminate()
        await process.wait()


async def _port(process: asyncio.subprocess.Process) -> int:
    if process.stderr is None:
        raise RuntimeError("the gateway's stderr is not a pipe")
    async for line in process.stderr:
        if b"serving on http://127.0.0.1:" in line:
            return int(line.split(b"127.0.0.1:")[1].split(b"/")[0])
    raise RuntimeError("the gateway ended before it served")
