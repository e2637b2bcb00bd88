"""The processes of one managed engine, found by what the system says of them, and a wait for what they do."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

DEADLINE_SECONDS = 120.0


@dataclass(slots=True)
class Family:
    """Every process with `marker` in its environment, and every one in a session that such a process was seen in.

    vLLM's engine and worker processes overwrite their environment with a title, so they are known by session only.
    """

    marker: str
    _sessions: set[int] = field(default_factory=set)

    def living(self) -> dict[int, str]:
        """Process id → command line, zombies left out."""
        found = {}
        for folder in sorted(Path("/proc").iterdir()):
            try:
                pid = int(folder.name)
                state, _, _, session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
                marked = self.marker.encode() in (folder / "environ").read_bytes()
                words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except (ValueError, OSError):
                continue
            if marked:
                self._sessions.add(int(session))
            if state != "Z" and (marked or int(session) in self._sessions):
                found[pid] = words.strip()
        return found

    def one(self, word: str, but: str = "\0") -> int:
        """The first process whose command line has `word` and not `but`."""
        return next(pid for pid, words in self.living().items() if word in words and but not in words)


def until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> None:
    """Wait for something that another process does; fails with `what`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
