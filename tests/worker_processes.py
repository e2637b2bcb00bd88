"""A gateway with worker processes: which they are, and one of them alone to answer."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

DEADLINE = 60.0


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
