"""A constant rate of requests, whatever comes back, and how long each took from the moment it was due.

    python -m bench.open_loop < PLAN.json > CAME.json

The load generator's own process: plain sockets and epoll, so that it costs what it measures little. A request that
waits for a slow server, or for this process, is late from its due time on: nothing is left out (no coordinated
omission).
"""

from __future__ import annotations

import asyncio
import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .gateway_requests import Template, endless_texts

GRACE_SECONDS = 10.0
FEWEST_READY, MOST_READY = 8, 900


@dataclass(frozen=True, slots=True)
class Plan:
    """`rate` requests a second for `seconds`; what is due in the first `warm` seconds is not counted.

    `folder` holds the template, `texts` the texts, from number `offset` on.
    """

    port: int
    folder: str
    texts: str
    offset: int
    rate: float
    seconds: float
    warm: float = 0.5


@dataclass(slots=True)
class Came:
    """Seconds from the due time of each request to the first byte of its answer (`first`) and to its last (`whole`).

    `late` is the worst that a request was sent after it was due: the generator's own share in its time.
    """

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    failed: int = 0
    sent: int = 0
    late: float = 0.0


async def run_open_loop(plan: Plan) -> Came:
    """Run it in a process of its own, on the cores that this one has."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.open_loop"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate(json.dumps(asdict(plan)).encode())
    if process.returncode:
        raise RuntimeError("the open loop failed; its error is above")
    return Came(**json.loads(output))


class Connection:
    """One request at a time. `due` is when the one under way should have been sent, `None` while there is none."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.setblocking(False)  # a server with a full backlog lets a connect wait for a second
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect_ex(("127.0.0.1", port))
        self.connected = False
        self._request = b""
        self.due: float | None = None
        self.first: float | None = None
        self._received = b""
        self._length: int | None = None

    def send(self, request: bytes, due: float) -> None:
        self.due, self.first, self._received, self._length = due, None, b"", None
        if self.connected:
            self.socket.sendall(request)
        else:
            self._request = request

    def establish(self) -> None:
        """It is connected now: send what waited for that."""
        self.connected = True
        self.socket.setblocking(True)
        self.socket.sendall(self._request)

    def receive(self, now: float) -> bool | None:
        """Whether the answer is complete; `None` where it never will be: cut off, or not a 200."""
        data = self.socket.recv(262_144)
        if not data or self.due is None:
            return None
        self.first = self.first or now
        self._received += data
        if self._length is None:
            self._length = _length(self._received)
            if self._length is None:
                return False
            if not self._received.startswith(b"HTTP/1.1 200"):
                return None
        if self._length >= 0:
            return len(self._received) >= self._length
        self._received = self._received[-5:]
        return self._received == b"0\r\n\r\n"


def _length(received: bytes) -> int | None:
    """Bytes of the whole answer, -1 where it comes in chunks, `None` where its head is not there yet."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    head = received[:end].lower()
    at = head.find(b"\r\ncontent-length:")
    return -1 if at < 0 else end + 4 + int(head[at + 17 :].partition(b"\r\n")[0])


class Loop:
    """Runs one plan."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._came = Came()
        self._epoll = select.epoll()
        self._open: dict[int, Connection] = {}
        self._free: deque[Connection] = deque()
        self._template = Template.read(Path(plan.folder))
        self._texts = endless_texts(Path(plan.texts), plan.offset)
        self._counted_from = 0.0

    def run(self) -> Came:
        """Connections for what is usually under way are there before the first request is due."""
        ready = [self._connect() for _ in range(min(MOST_READY, FEWEST_READY + int(self._plan.rate / 10)))]
        ends = time.perf_counter() + GRACE_SECONDS
        while not all(connection.connected for connection in ready) and time.perf_counter() < ends:
            self._wait(0.05)
        self._free.extend(connection for connection in ready if connection.socket.fileno() >= 0)
        started = time.perf_counter() + 0.01
        self._counted_from = started + self._plan.warm
        for due in _due_times(started, self._plan):
            self._until(due)
            self._send(due)
        ends = time.perf_counter() + GRACE_SECONDS
        while len(self._free) < len(self._open) and time.perf_counter() < ends:
            self._wait(0.05)
        self._came.failed += len(self._open) - len(self._free)
        return self._came

    def _until(self, due: float) -> None:
        """Take what comes back until then. epoll itself waits in whole milliseconds; select on it does not."""
        while True:
            left = due - time.perf_counter()
            self._wait(max(0.0, left))
            if left <= 0:
                return

    def _wait(self, seconds: float) -> None:
        select.select([self._epoll], [], [], seconds)
        for number, _ in self._epoll.poll(0):
            connection = self._open[number]
            if connection.connected:
                self._receive(connection)
            else:
                self._establish(connection)

    def _send(self, due: float) -> None:
        request = self._template.request(next(self._texts))
        connection = self._free.popleft() if self._free else self._connect()
        self._came.late = max(self._came.late, time.perf_counter() - due)
        self._came.sent += 1
        try:
            connection.send(request, due)
        except OSError:
            self._drop(connection)

    def _connect(self) -> Connection:
        connection = Connection(self._plan.port)
        self._open[connection.socket.fileno()] = connection
        self._epoll.register(connection.socket, select.EPOLLOUT)
        return connection

    def _establish(self, connection: Connection) -> None:
        try:
            connection.establish()
            self._epoll.modify(connection.socket, select.EPOLLIN)
        except OSError:
            self._drop(connection)

    def _receive(self, connection: Connection) -> None:
        now = time.perf_counter()
        try:
            complete = connection.receive(now)
        except OSError:
            complete = None
        if complete is None:
            self._drop(connection)
        elif complete and connection.due is not None and connection.first is not None:
            if connection.due >= self._counted_from:
                self._came.first.append(connection.first - connection.due)
                self._came.whole.append(now - connection.due)
            connection.due = None
            self._free.append(connection)

    def _drop(self, connection: Connection) -> None:
        if connection.due is None:
            with suppress(ValueError):
                self._free.remove(connection)
        else:
            self._came.failed += 1
        del self._open[connection.socket.fileno()]
        connection.socket.close()


def _due_times(started: float, plan: Plan) -> Iterator[float]:
    """Evenly spaced."""
    return (started + number / plan.rate for number in range(int(plan.rate * plan.seconds)))


def main() -> None:
    """Run the plan on stdin and print what came of it."""
    json.dump(asdict(Loop(Plan(**json.load(sys.stdin))).run()), sys.stdout)


if __name__ == "__main__":
    main()
