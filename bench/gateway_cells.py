"""What is measured of one way to the upstream: CPU time of a request, its rate, the latency added, the memory held."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .gateway_home import Served
from .gateway_requests import Template, endless_texts
from .gateway_servers import Server, fetch
from .open_loop import Came, Plan, run_open_loop
from .processes import family, family_cpu_seconds, memory_mb

SCRIPT = Path(__file__).with_name("gateway_load.lua")
CLIENTS = 32
QUIET_SECONDS = 30.0
QUIET_SHARE = 0.15  # of a core: more than a gateway does by itself


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to the upstream: a server and the model it is asked for."""

    name: str
    server: Server
    model: str


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole response; names of headers in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Load:
    """One closed-loop run of wrk: `answered` in `seconds`, as it counted, and CPU seconds until all was quiet again.

    `reached`: requests that the upstream got in all that time. Some of them wrk no longer waited for.
    """

    answered: int
    seconds: float
    failed: int
    reached: int
    cpu: float

    @property
    def rate(self) -> float:
        return self.answered / self.seconds

    @property
    def cpu_us(self) -> float | None:
        """CPU time of a request in µs; `None` where one failed: refusals are cheap."""
        return None if self.failed or not self.reached else self.cpu / self.reached * 1e6


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
            cpu, reached = family_cpu_seconds(arm.server.pid), self._reached()
            counted = await self._wrk(arm, folder, seconds, clients)
            await _until_quiet(arm.server)
            cpu, reached = family_cpu_seconds(arm.server.pid) - cpu, self._reached() - reached
        self._spend(arm, counted["requests"] + clients)
        failed = int(counted["refused"] + counted["broken"])
        return Load(int(counted["requests"]), counted["seconds"], failed, reached, cpu)

    async def open_loop(self, arm: Arm, rate: float, seconds: float, *, stream: bool) -> tuple[Came, float]:
        """A constant rate; what came, and the CPU time of a request in µs."""
        with tempfile.TemporaryDirectory() as folder:
            self._template(arm, 1024, stream).write(Path(folder))
            plan = Plan(arm.server.port, folder, str(self.served.texts), self._offset, rate, seconds)
            before = family_cpu_seconds(arm.server.pid)
            came = await run_open_loop(plan)
            await _until_quiet(arm.server)
            used = family_cpu_seconds(arm.server.pid) - before
        self._spend(arm, came.sent)
        return came, used / max(1, came.sent) * 1e6

    def ask(self, arm: Arm, *, stream: bool = False) -> Answer:
        """One request, looked at closely."""
        template = self._template(arm, 1024, stream)
        text = next(endless_texts(self.served.texts, self._offset))
        self._spend(arm, 1)
        with socket.create_connection(("127.0.0.1", arm.server.port), timeout=30) as connection:
            connection.sendall(template.request(text))
            response = http.client.HTTPResponse(connection)
            response.begin()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())

    def behave(self, *, first_ms: float = 0.0, event_ms: float = 0.0) -> None:
        """How long the upstream takes from here on."""
        fetch(f"{self.upstream.url}/behave?first_ms={first_ms}&event_ms={event_ms}")

    def _reached(self) -> int:
        return int(fetch(f"{self.upstream.url}/count"))

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


async def _until_quiet(server: Server) -> None:
    """Until it has done what it was asked and nobody waits for any more."""
    deadline, before = time.monotonic() + QUIET_SECONDS, family_cpu_seconds(server.pid)
    while time.monotonic() < deadline:
        await asyncio.sleep(0.2)
        after = family_cpu_seconds(server.pid)
        if after - before <= 0.2 * QUIET_SHARE:
            return
        before = after


def memory_of(server: Server) -> float:
    """MB of all its processes, shared pages counted once."""
    return sum(map(memory_mb, family(server.pid)))
