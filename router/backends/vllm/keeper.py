"""Runs one engine and ends it, with every process it started, when the gateway goes away.

A program of its own on the standard library: `python -I -S keeper.py GRACE_SECONDS COMMAND…`. Its stdin is a pipe from
the gateway; the end of that pipe, or SIGTERM, ends the engine: SIGTERM, then SIGKILL after the grace period. Its first
line of output is the engine's process id; everything after it is the engine's own. It exits as the engine did (128 + N
for signal N).

vLLM's engine process does not notice the death of its API server. So the engine is the foreground group of a terminal
that this keeper alone holds: after a `kill -9` of the keeper the kernel hangs up on the whole group.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import pty
import select
import signal
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SWEEP_SECONDS = 3.0
TICK_SECONDS = 0.5
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def main(words: list[str]) -> int:
    grace, command = float(words[0]), words[1:]
    gateway = os.getppid()
    wake = _catch_signals()
    _prctl(PR_SET_CHILD_SUBREAPER, 1)
    engine = _start(command)
    os.write(1, b"%d\n" % engine)
    status = _watch(engine, gateway, wake, grace)
    _sweep(engine)
    return status if status >= 0 else 128 - status


def _catch_signals() -> int:
    """A pipe that gets the number of every signal from now on."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer)
    for number in _SIGNALS:
        signal.signal(number, lambda *_: None)
    return reader


def _start(command: list[str]) -> int:
    terminal = _terminal()
    keeper = os.getpid()
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # or one that comes before the exec below would be lost
    engine = os.fork()
    if engine == 0:
        _become(command, keeper)
    with suppress(OSError):  # the child did it, and is another program by now
        os.setpgid(engine, engine)
    if terminal is not None:
        with suppress(OSError):
            os.tcsetpgrp(terminal, engine)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    return engine


def _become(command: list[str], keeper: int) -> NoReturn:
    try:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.setpgid(0, 0)
        _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:  # it died before the line above
            os._exit(1)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        os.write(2, f"OSError: cannot start {command[0]}: {error.strerror}\n".encode())
    os._exit(127)


def _terminal() -> int | None:
    """The engine's side of a new terminal that controls this session; `None` where the system gives none."""
    try:
        with suppress(PermissionError):  # it leads a session already
            os.setsid()
        terminal = pty.openpty()[1]
        fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    except OSError:
        return None
    return terminal


def _watch(engine: int, gateway: int, wake: int, grace: float) -> int:
    """Until the engine has ended. Returns its exit code, negative for a signal."""
    deadline: float | None = None
    while True:
        ended, status = os.waitpid(engine, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if deadline is None and _must_end(gateway, wake):
            os.kill(engine, signal.SIGTERM)
            deadline = time.monotonic() + grace
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(engine, signal.SIGKILL)
        select.select([wake] if deadline is not None else [wake, 0], [], [], TICK_SECONDS)
        if deadline is not None:
            _drain(wake)


def _must_end(gateway: int, wake: int) -> bool:
    asked = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP} & set(_drain(wake))
    hung_up = bool(select.select([0], [], [], 0)[0]) and not os.read(0, 4096)
    return bool(asked) or hung_up or os.getppid() != gateway


def _drain(wake: int) -> bytes:
    with suppress(BlockingIOError):
        return os.read(wake, 4096)
    return b""


def _sweep(engine: int) -> None:
    """End what the engine left behind. Its resource trackers, which then free its shared memory, go by themselves."""
    deadline = time.monotonic() + SWEEP_SECONDS
    while children := _children():
        for child in children:
            if time.monotonic() >= deadline or not _is_tracker(child):
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(engine, signal.SIGKILL)


def _is_tracker(child: int) -> bool:
    try:
        return b"multiprocessing.resource_tracker" in Path(f"/proc/{child}/cmdline").read_bytes()
    except OSError:
        return False


def _children() -> list[int]:
    """Processes that fell to this one as their reaper, those that left the engine's group too. Linux only."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    me = os.getpid()
    try:
        return [int(word) for word in Path(f"/proc/{me}/task/{me}/children").read_text().split()]
    except OSError:
        return []


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
