"""Whether an engine that calls wait for does anything at all, by its own counters of work. No clock."""

from __future__ import annotations

from collections.abc import Sequence


class Standstill:
    """Times are in seconds on the caller's clock."""

    def __init__(self) -> None:
        self._work: Sequence[bytes] = ()
        self._since: float | None = None

    def seconds(self, work: Sequence[bytes], now: float) -> float:
        """For how long the counters, as read `now`, have stood still; 0 where the engine shows none."""
        if self._since is None or not work or work != self._work:
            self._work, self._since = work, now
        return now - self._since

    def forget(self) -> None:
        """Nobody waits, or something came back."""
        self._since = None
