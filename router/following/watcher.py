"""The thread that follows the registry: looks when it says that it changed, hands on what did, writes heartbeats.

Where it says nothing, the thread looks once a second. A registry that cannot be read never stops the gateway: what is
in force stays in force, visibly stale.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from adapters.convergence import HEARTBEAT_SECONDS
from adapters.errors import BranchlineError, RegistryUnavailable
from adapters.journal import Journal
from adapters.notices import Notices, notices_of
from adapters.server_sockets import ServerSockets
from adapters.types import GatewayRow
from adapters.view import View

RETRY_SECONDS = 0.5
SILENT_SECONDS = 3.0  # a database that neither answers nor refuses keeps the thread waiting; it is stale all the same
CUT_SECONDS = 15.0  # of such silence: then the connections are given up, for new ones may well answer
log = logging.getLogger("branchline.registry")


class Watcher:
    """Calls `on_view` (in its own thread) for every change, and writes what `heartbeat()` returns every second and
    whenever `beat_now` was called. `stale_seconds` tells how long the registry has not answered.
    """

    def __init__(
        self, journal: Journal, on_view: Callable[[View], None], heartbeat: Callable[[], GatewayRow], serial: int
    ) -> None:
        self._journal = journal
        self._on_view = on_view
        self._heartbeat = heartbeat
        self._serial = serial
        self._notices: Notices = notices_of(journal.engine)
        self._sockets = ServerSockets(journal.engine)
        self._wake = threading.Event()
        self._beat_wanted = True
        self._stopping = False
        self._last_answer = time.monotonic()
        self._last_word = self._last_answer  # an answer or an error
        self._last_beat = 0.0
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="registry-watcher", daemon=True)
        self._stopped = threading.Event()
        self._guard = threading.Thread(target=self._cut_silent, name="registry-guard", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._guard.start()

    def stop(self) -> None:
        """End the thread and take this gateway's heartbeat row away."""
        self._stopping = True
        self._rouse()
        self._thread.join(timeout=5)
        self._stopped.set()
        self._guard.join()

    def beat_now(self) -> None:
        self._beat_wanted = True
        self._rouse()

    @property
    def stale_seconds(self) -> float:
        silent = time.monotonic() - self._last_answer
        return silent if self._failing or silent > SILENT_SECONDS else 0.0

    def _rouse(self) -> None:
        self._wake.set()
        self._notices.wake()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._step()
                self._answered()
                self._notices.wait()
            except Exception as error:  # noqa: BLE001 - it is logged and shown as stale in `_failed`
                self._failed(error)
                self._wake.wait(RETRY_SECONDS)
            self._wake.clear()
        self._notices.close()
        try:
            self._journal.forget_gateway(self._heartbeat().gateway_id)
        except BranchlineError as error:
            log.warning("could not take the heartbeat away: %s", error)

    def _step(self) -> None:
        view = self._journal.newer_view(after=self._serial)
        if view is not None and view.serial < self._serial:
            raise RegistryUnavailable(
                f"the registry is at serial {view.serial}, and {self._serial} is in force: it is an older copy",
                hint="put the right one in its place, or restart the gateway to serve what this one says",
            )
        if view is not None:
            self._serial = view.serial
            self._on_view(view)
        if self._beat_wanted or time.monotonic() - self._last_beat >= HEARTBEAT_SECONDS:
            self._beat_wanted = False
            self._journal.beat(self._heartbeat())
            self._last_beat = time.monotonic()

    def _cut_silent(self) -> None:
        """In a thread of its own: give connections up on which neither an answer nor an error comes."""
        while not self._stopped.wait(CUT_SECONDS / 4):
            if time.monotonic() - self._last_word > CUT_SECONDS:
                log.warning("the registry has not answered for %.0f s; its connections are made anew", CUT_SECONDS)
                self._sockets.cut()

    def _answered(self) -> None:
        if self._failing:
            log.warning("the registry answers again after %.1f s", self.stale_seconds)
        self._failing = False
        self._last_answer = self._last_word = time.monotonic()

    def _failed(self, error: Exception) -> None:
        """Whatever it was, the thread goes on: a gateway that no longer follows must at least say so."""
        if not self._failing:
            unforeseen = None if isinstance(error, BranchlineError) else error
            log.error("%s; serving what is in force", error, exc_info=unforeseen)
        self._failing = True
        self._last_word = time.monotonic()
