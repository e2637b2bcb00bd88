"""The decision log: a JSON line of facts for each answer and, only where switched on, the text that was classified.

Texts are kept for a stated number of days, in a file for each day (`adapters.decisions`), for the owner's eyes.
A log that cannot be written costs its lines, never an answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

from adapters.decisions import blank_route, day_file, day_files
from adapters.errors import BranchlineError
from adapters.journal import Journal

from .errors import ConfigInvalid
from .types import Decision

DAYS = 7
MAX_TEXT_CHARACTERS = 32_768
SWEEP_SECONDS = 30.0
_MODE = 0o600
log = logging.getLogger("branchline.decisions")


class DecisionLog:
    """Appends to `path`; with `text` to a file of the day beside it. Belongs to one event loop, but for `sweep`.

    Files of days are deleted when they are `days` old, also those that are left from when texts were kept. `clock`
    gives seconds since the epoch. Raises `ConfigInvalid` where it cannot be written from the start.
    """

    def __init__(
        self, path: Path, *, text: bool = False, days: int = DAYS, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self.keeps_text = text
        self._days = days
        self._clock = clock
        self._day: date | None = None
        self._failing = False
        self._torn = False
        try:
            self._descriptor: int | None = self._open()
        except OSError as error:
            raise ConfigInvalid(f"cannot write the decision log {path}: {error.strerror}") from error
        self.sweep()

    def write(
        self,
        decision: Decision,
        request_id: str,
        outcome: str,
        seconds: float,
        text: str | None,
        key_id: str | None = None,
    ) -> None:
        """Append one line. `text` goes in where texts are kept and it is no longer than `MAX_TEXT_CHARACTERS`."""
        facts: dict[str, object] = {
            "time": self._clock(),
            **asdict(decision),
            "request_id": request_id,
            "key_id": key_id,
            "outcome": outcome,
            "seconds": round(seconds, 6),
        }
        if self.keeps_text:  # the last key: `adapters.decisions` counts on it
            facts["text"] = text if text is not None and len(text) <= MAX_TEXT_CHARACTERS else None
        try:
            self._append(json.dumps(facts).encode() + b"\n")
            self._failing = False
        except OSError as error:
            self._failed(error)

    def sweep(self) -> None:
        """Delete files of days that are over."""
        oldest = self._today() - timedelta(days=self._days - 1)
        try:
            for day, file in day_files(self.path).items():
                if day < oldest:
                    file.unlink(missing_ok=True)
        except OSError as error:
            log.error("old decision logs cannot be deleted: %s", error.strerror)

    def close(self) -> None:
        if self._descriptor is not None:
            with suppress(OSError):
                os.close(self._descriptor)
        self._descriptor = None

    def _append(self, line: bytes) -> None:
        if self._descriptor is None or (self.keeps_text and self._day != self._today()):
            self.close()
            self._descriptor = self._open()
            self.sweep()
        line = b"\n" + line if self._torn else line
        written = os.write(self._descriptor, line)
        self._torn = written < len(line)

    def _open(self) -> int:
        flags = os.O_APPEND | os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC
        if not self.keeps_text:
            return os.open(self.path, flags, _MODE)
        self._day = self._today()
        descriptor = os.open(day_file(self.path, self._day), flags | os.O_NOFOLLOW, _MODE)
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.fchmod(descriptor, _MODE)
        return descriptor

    def _today(self) -> date:
        return datetime.fromtimestamp(self._clock(), UTC).date()

    def _failed(self, error: OSError) -> None:
        """Said once, until a line can be written again."""
        if not self._failing:
            log.error("the decision log cannot be written: %s", error.strerror)
        self._failing = True


async def keep_swept(decision_log: DecisionLog, journal: Journal) -> None:
    """Until cancelled, also without traffic: delete files of days that are over, and blank what was forgotten."""
    serial = 0
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        serial = await asyncio.to_thread(_sweep, decision_log, journal, serial)


def _sweep(decision_log: DecisionLog, journal: Journal, serial: int) -> int:
    """Blank the texts that were routed to a route before it was forgotten; up to which serial that is done now."""
    decision_log.sweep()
    try:
        if not day_files(decision_log.path) or journal.serial() == serial:
            return serial
        newer = journal.events(after=serial)
        for event in newer:
            if event.kind == "route_forgotten" and event.route is not None:
                blank_route(decision_log.path, event.route, before=datetime.fromisoformat(event.time))
        return newer[-1].serial if newer else serial
    except (BranchlineError, OSError) as error:
        log.error("forgotten texts cannot be blanked in the decision log: %s", error)
        return serial
