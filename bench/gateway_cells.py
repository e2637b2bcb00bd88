"""What is measured of one way to the upstream: CPU time of a request, its rate, the latency added, the memory held."""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from .gateway_home import Served
from .gateway_requests import Template
from .gateway_servers import Server, fetch
from .open_loop import Came, Plan, run_open_loop
from .processes import family, family_cpu_seconds, memory_mb

SCRIPT = Path(__file__).with_name("gateway_load.lua")
CLIENTS = 32
DELAY_CLIENTS = 256  # an answer takes 50 ms or more: so many are needed to keep a gateway busy


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to the upstream: a server and the model it is asked for."""

    name: str
    server: Server
    model: str


@dataclass(frozen=True, slots=True)
class Load:
    """One closed-loop run of wrk: what it counted, and the CPU seconds that server and upstream used meanwhile."""

    requests: int
    seconds: float
    failed: int
    cpu: float
    upstream_cpu: float

    @property
    def rate(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_us(self) -> float | None:
        """CPU time of an answered request in µs; `None` where one failed: refusals are cheap."""
        return None if self.failed or not self.requests else self.cpu / self.requests * 1e6

    @property
    def upstream_us(self) -> float:
        """The same of the upstream."""
        return self.upstream_cpu / max(1, self.requests) * 1e6


@dataclass(slots=True)
class Bench:
    """The texts that are left, and the upstream. No two requests of a run have the same text."""

    served: Served
    upstream: Server
    made: dict[str, int] = field(default_factory=dict)
    _offset: int = 0

    async def load(
        self, arm: Arm, seconds: float, *, size: int = 1024, stream: bool = False, clients: int = CLIENTS
    ) -> Load:
        """A closed loop for so long. Everything is warm when it begins: call it once for a moment before."""
        with tempfile.TemporaryDirectory() as folder:
            self._template(arm, size, stream).write(Path(folder))
            began = [family_cpu_seconds(pid) for pid in (arm.server.pid, self.upstream.pid)]
            counted = await self._wrk(arm, folder, seconds, clients)
            used = [family_cpu_seconds(pid) for pid in (arm.server.pid, self.upstream.pid)]
        self._spend(arm, counted["requests"] + clients)
        cpu, upstream_cpu = (after - before for after, before in zip(used, began, strict=True))
        failed = int(counted["refused"] + counted["broken"])
        return Load(int(counted["requests"]), counted["seconds"], failed, cpu, upstream_cpu)

    async def open_loop(self, arm: Arm, rate: float, seconds: float, *, stream: bool) -> tuple[Came, float]:
        """A constant rate; what came, and the CPU time of a request in µs."""
        with tempfile.TemporaryDirectory() as folder:
            self._template(arm, 1024, stream).write(Path(folder))
            plan = Plan(arm.server.port, folder, str(self.served.texts), self._offset, rate, seconds)
            before = family_cpu_seconds(arm.server.pid)
            came = await run_open_loop(plan)
            used = family_cpu_seconds(arm.server.pid) - before
        self._spend(arm, came.sent)
        return came, used / max(1, came.sent) * 1e6

    def behave(self, *, first_ms: float = 0.0, event_ms: float = 0.0) -> None:
        """How long the upstream takes from here on."""
        fetch(f"{self.upstream.url}/behave?first_ms={first_ms}&event_ms={event_ms}")

    def _template(self, arm: Arm, size: int, stream: bool) -> Template:
        return Template.of(arm.model, size, stream=stream, key=arm.server.key, filler=self.served.filler)

    def _spend(self, arm: Arm, count: float) -> None:
        self._offset += int(count)
        self.made[arm.server.name] = self.made.get(arm.server.name, 0) + int(count)

    async def _wrk(self, arm: Arm, folder: str, seconds: float, clients: int) -> dict[str, float]:
        command = [
            *("wrk", "--threads", "1", "--connections", str(clients), "--duration", f"{max(1, round(seconds))}s"),
            *("--timeout", "60s", "--script", str(SCRIPT), arm.server.url, "--"),
            *(folder, str(self.served.texts), str(self._offset)),
        ]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        last = output.decode(errors="replace").strip().rpartition("\n")[2]
        if process.returncode or not last.startswith("{"):
            raise RuntimeError(f"wrk failed: {last:.300}")
        counted: dict[str, float] = json.loads(last)
        return counted


def memory_of(server: Server) -> float:
    """MB of all its processes, shared pages counted once."""
    return sum(map(memory_mb, family(server.pid)))
