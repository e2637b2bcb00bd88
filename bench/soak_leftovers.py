"""What a gateway keeps and what it leaves over: memory while it runs; processes, sockets, files after it has ended."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import numpy as np

from .fault_clients import Question, ask
from .fault_ground import Ground
from .processes import anonymous_mb, family

LONG = 200  # tokens of an answer that a real engine is busy with for seconds
DRAINED = 12  # answers that run when the gateway is told to end
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # what POSIX shared memory is under, on Linux
COMPLAINTS = re.compile(
    r"Traceback|Task was destroyed|was never (?:retrieved|awaited)|ResourceWarning|exception ignored", re.I
)


async def sample(pid: int, found: list[tuple[float, float]], every: float) -> None:
    """Append (seconds, MB of all its processes), until cancelled."""
    clock = asyncio.get_running_loop().time
    began = clock()
    while True:
        found.append((clock() - began, await asyncio.to_thread(family_mb, pid)))
        await asyncio.sleep(every)


def family_mb(pid: int) -> float:
    return sum(map(anonymous_mb, family(pid)))


def slope(samples: Sequence[tuple[float, float]], warm: float) -> float:
    """MB a minute, least squares over the samples after `warm` seconds; NaN of fewer than three."""
    kept = [(seconds / 60, mb) for seconds, mb in samples if seconds >= warm]
    if len(kept) < 3:
        return float("nan")
    minutes, sizes = np.array(kept).T
    return float(np.polyfit(minutes, sizes, 1)[0])


async def drain(ground: Ground) -> list[str]:
    """SIGTERM while answers run: each of them comes whole, the gateway ends by itself. What was not so, in words."""
    (gateway,) = ground.gateways
    for engine in ground.engines:
        engine.slow_down()
    await asyncio.sleep(0.2)
    questions = [Question("sql", stream=number % 2 == 0, tokens=LONG) for number in range(DRAINED)]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        running = [asyncio.create_task(ask(session, gateway.url, question)) for question in questions]
        await asyncio.sleep(0.3)  # they are with the engines, which take longer: stand-ins for the first byte alone
        gateway.signal(signal.SIGTERM)
        answers = await asyncio.gather(*running)
    code = await asyncio.to_thread(gateway.wait)
    found = [f"drained: {one.broken or 'cut short'}" for one in answers if one.broken or one.is_cut]
    return [*found, *([f"exit code {code}"] if code else [])]


def left_over(ground: Ground, pids: Sequence[int], scratch: Path, shared: frozenset[str]) -> list[str]:
    """What is there after the end and was not before, in words."""
    (gateway,) = ground.gateways
    found = [f"process {pid} is left over" for pid in pids if Path(f"/proc/{pid}").exists()]
    address = urlsplit(gateway.url)
    with closing(socket.socket()) as probe:
        if probe.connect_ex((str(address.hostname), int(address.port or 0))) == 0:
            found.append("its port still listens")
    found += [f"{path} is left over" for path in scratch.rglob("*")]
    found += [
        f"{SHARED_MEMORY}/{name} is left over" for name in sorted(shared_memory() - shared) if "branchline" in name
    ]
    with ground.registry() as registry:
        found += [f"the heartbeat of {row.gateway_id} is left over" for row in registry.gateways()]
    return [*found, *(f"it wrote: {line}" for line in gateway.lines if COMPLAINTS.search(line))]


def shared_memory() -> frozenset[str]:
    return frozenset(path.name for path in SHARED_MEMORY.iterdir()) if SHARED_MEMORY.is_dir() else frozenset()
