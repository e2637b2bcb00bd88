"""A real `branchline serve` in a process of its own, and the real command line beside it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

BRANCHLINE = str(Path(sys.executable).with_name("branchline"))
START_SECONDS = 240.0
STOP_SECONDS = 60.0
_SERVING = re.compile(r"serving on (http://\S+)/v1")


def environment(**variables: str) -> dict[str, str]:
    """The environment without any Branchline variable but `variables`; torch may not take every core."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("BRANCHLINE_")}
    return {**kept, "OMP_NUM_THREADS": "1", **variables}


def branchline(*words: str, home: Path, expect: int = 0, **variables: str) -> str:
    """Run a command; its standard output. The exit code must be `expect`; with another than 0, standard error."""
    done = subprocess.run(
        [BRANCHLINE, *words, "--home", str(home)],
        capture_output=True,
        text=True,
        env=environment(**variables),
        timeout=START_SECONDS,
        check=False,
    )
    assert done.returncode == expect, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if expect == 0 else done.stderr


@dataclass(slots=True)
class GatewayProcess:
    """A server process. `lines` is what it has written to standard error so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    url: str = ""
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _reader: threading.Thread | None = None

    @classmethod
    def start(cls, home: Path, *words: str, **variables: str) -> GatewayProcess:
        """Start `serve` with `words`; it may not be serving yet."""
        process = subprocess.Popen(
            [BRANCHLINE, "serve", *words, "--home", str(home)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(**variables),
        )
        return cls.around(process)

    @classmethod
    def around(cls, process: subprocess.Popen[str]) -> GatewayProcess:
        """A server that was started with its standard error piped."""
        started = cls(process)
        started._reader = threading.Thread(target=started._read, daemon=True)
        started._reader.start()
        return started

    def wait_for(
        self, pattern: str | re.Pattern[str], seconds: float = START_SECONDS, *, after: int = 0
    ) -> re.Match[str]:
        """The first match of `pattern` in a line, `after` lines not looked at; fails where the process ends, or the
        time, before it comes.
        """

        def found() -> re.Match[str] | None:
            return next((match for line in self.lines[after:] if (match := re.search(pattern, line))), None)

        with self._changed:
            self._changed.wait_for(lambda: found() is not None or self._reader is None, seconds)
            match = found()
        assert match is not None, f"no line matches {pattern!r}:\n{self.output}"
        return match

    def wait_until_serving(self) -> GatewayProcess:
        self.url = self.wait_for(_SERVING).group(1)
        return self

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Its exit code, with all its output read."""
        code = self.process.wait(seconds)
        if self._reader is not None:
            self._reader.join(seconds)
        return code

    def stop(self) -> int:
        """Ctrl-C, unless it has ended; kill where even that does not help."""
        if self.process.poll() is None:
            self.signal(signal.SIGINT)
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        finally:
            if self.process.stderr is not None:
                self.process.stderr.close()

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def _read(self) -> None:
        stream = self.process.stderr
        for line in stream if stream is not None else ():
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._reader = None
            self._changed.notify_all()


@contextmanager
def serving(home: Path, *words: str, variables: Mapping[str, str] | None = None) -> Iterator[GatewayProcess]:
    """A gateway on a free port of this machine, from its "serving on" line to a Ctrl-C at the end."""
    gateway = GatewayProcess.start(home, *words, "--port", "0", **(variables or {}))
    try:
        yield gateway.wait_until_serving()
    finally:
        gateway.stop()
