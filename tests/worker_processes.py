"""A gateway with worker processes: which they are, and one of them alone to answer."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from tests.gateway_process import GatewayProcess

DEADLINE = 60.0
LONG_TEXT = " ".join(["w" * 3700] * 2040)  # echoed, more than all buffers on the way to a client that does not read


def workers_of(pid: int) -> list[int]:
    """The worker processes of the gateway `pid`, oldest first."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return [int(child) for child in children if b"router.workers.worker" in _command(int(child))]


def is_running(pid: int) -> bool:
    """Whether there is such a process that has not ended."""
    return _state(pid) not in ("", "Z")


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """These processes do nothing meanwhile."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda pid=pid: _state(pid) == "T", f"{pid} stopped")  # type: ignore[misc]  # a default is no type
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    """Look again and again; fails where it never comes."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what}"
        time.sleep(0.005)


@contextmanager
def unread_stream(gateway: GatewayProcess, key: str = "") -> Iterator[socket.socket]:
    """A streaming answer that has begun and cannot end, because nobody reads it yet."""
    body = {"model": "tiny", "messages": [{"role": "user", "content": LONG_TEXT}], "stream": True}
    raw = json.dumps(body).encode()
    with closing(socket.socket()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(DEADLINE)
        connection.connect(("127.0.0.1", port_of(gateway)))
        head = (
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
            f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
        )
        connection.sendall(f"{head}content-length: {len(raw)}\r\n\r\n".encode() + raw)
        assert connection.recv(12) == b"HTTP/1.1 200"
        yield connection


def port_of(gateway: GatewayProcess) -> int:
    return int(gateway.url.rpartition(":")[2])


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2][:1]
    except OSError:
        return ""


def _command(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
