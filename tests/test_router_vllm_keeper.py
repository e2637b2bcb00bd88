"""The keeper: it runs one engine, ends as it ended, and leaves nothing of it behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from router.backends.vllm import keeper
from tests.engine_family import Family, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
SLEEP = "import time; time.sleep(600)"
DEAF = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); {SLEEP}"
# A child in the engine's group that does not notice its parent's death, as vLLM's engine process.
PARENT = (
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); print('up', flush=True); {SLEEP}"
)
RUNAWAY = f"import os, subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}], start_new_session=True)"


@dataclass(frozen=True, slots=True)
class Kept:
    """A keeper with its engine; `engine` is the engine's process id."""

    keeper: subprocess.Popen[str]
    engine: int
    family: Family

    def line(self) -> str:
        assert self.keeper.stdout is not None
        return self.keeper.stdout.readline().strip()

    def hang_up(self) -> None:
        """What the kernel does when the gateway is gone."""
        assert self.keeper.stdin is not None
        self.keeper.stdin.close()

    def ended(self) -> int:
        """The keeper's exit code; nothing may be left by then."""
        status = self.keeper.wait(30)
        assert self.family.living() == {}
        return status


@contextmanager
def kept(tmp_path: Path, program: str, *, grace: float = 20) -> Iterator[Kept]:
    marker = f"KEPT_BY={tmp_path}"
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", keeper.__file__, str(grace), sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "KEPT_BY": str(tmp_path)},
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin, process.stdout:
        try:
            yield Kept(process, int(process.stdout.readline()), Family(marker))
        finally:
            process.kill()
            process.wait()


@pytest.mark.parametrize(("program", "status"), [("pass", 0), ("raise SystemExit(7)", 7)])
def test_it_ends_as_its_engine_ended(tmp_path: Path, program: str, status: int) -> None:
    with kept(tmp_path, program) as it:
        assert it.ended() == status


def test_the_end_of_the_pipe_ends_the_engine_and_its_children(tmp_path: Path) -> None:
    with kept(tmp_path, PARENT) as it:
        assert it.line() == "up"
        assert len(it.family.living()) == 3
        it.hang_up()
        assert it.ended() == 128 + signal.SIGTERM


def test_sigterm_ends_the_engine_and_its_children(tmp_path: Path) -> None:
    with kept(tmp_path, PARENT) as it:
        assert it.line() == "up"
        it.keeper.terminate()
        assert it.ended() == 128 + signal.SIGTERM


def test_an_engine_deaf_to_sigterm_is_killed_after_the_grace_period(tmp_path: Path) -> None:
    with kept(tmp_path, DEAF, grace=0.2) as it:
        assert it.line() == "deaf"
        it.hang_up()
        assert it.ended() == 128 + signal.SIGKILL


def test_what_an_engine_leaves_behind_is_ended_even_in_another_session(tmp_path: Path) -> None:
    with kept(tmp_path, RUNAWAY) as it:
        assert it.ended() == 0


def test_after_a_kill_of_the_engine_its_children_are_ended(tmp_path: Path) -> None:
    with kept(tmp_path, PARENT) as it:
        assert it.line() == "up"
        os.kill(it.engine, signal.SIGKILL)
        assert it.ended() == 128 + signal.SIGKILL


def test_shared_memory_of_a_killed_engine_is_freed(tmp_path: Path) -> None:
    share = "from multiprocessing.shared_memory import SharedMemory as Shared; it = Shared(create=True, size=9)"
    with kept(tmp_path, f"{share}; print(it.name, flush=True); {SLEEP}") as it:
        memory = Path("/dev/shm") / it.line()  # noqa: S108
        assert memory.exists()
        os.kill(it.engine, signal.SIGKILL)
        assert it.ended() == 128 + signal.SIGKILL
        assert not memory.exists()


def test_a_kill_of_the_keeper_itself_leaves_nothing_either(tmp_path: Path) -> None:
    with kept(tmp_path, PARENT) as it:
        assert it.line() == "up"
        assert len(it.family.living()) == 3
        it.keeper.kill()
        until(lambda: not it.family.living(), "the kernel left a process of the engine", 30)


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", keeper.__file__, "1", str(tmp_path / "python")],
            stdin=reader,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(reader)
        os.close(writer)
    assert done.returncode == 127
    assert done.stderr == f"OSError: cannot start {tmp_path / 'python'}: No such file or directory\n"
