"""A circuit breaker: after failures in a row an engine is not asked for a while, then once, on trial. No clock."""

from __future__ import annotations


class Breaker:
    """Times are in seconds on the caller's clock. Opens after `failures` in a row, first for `first_seconds`, then for
    twice as long each time the trial fails, up to `longest_seconds`.
    """

    def __init__(self, *, failures: int = 3, first_seconds: float = 1.0, longest_seconds: float = 30.0) -> None:
        self._failures = failures
        self._first = first_seconds
        self._longest = longest_seconds
        self.reset()

    def reset(self) -> None:
        """Closed, as for an engine that just started."""
        self._failed = 0
        self._pause = self._first
        self._until: float | None = None
        self._on_trial = False

    def allows(self, now: float) -> bool:
        """Whether a call may begin now."""
        return self._until is None or (now >= self._until and not self._on_trial)

    def begin(self) -> None:
        """A call begins that `allows` allowed. After it, and after all others, comes `succeed`, `fail` or `abandon`."""
        self._on_trial = self._until is not None

    def succeed(self) -> None:
        """A call was answered."""
        self.reset()

    def fail(self, now: float) -> None:
        """A call was not answered, or with garbage."""
        if self._until is not None and self._on_trial:
            self._pause = min(2 * self._pause, self._longest)
            self._until = now + self._pause
        elif self._until is None:
            self._failed += 1
            if self._failed >= self._failures:
                self._until = now + self._pause
        self._on_trial = False

    def abandon(self) -> None:
        """A call ended before anything could be learnt from it."""
        self._on_trial = False
