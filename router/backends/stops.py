"""Stop strings over a text that arrives in pieces."""

from __future__ import annotations


class StopScanner:
    """Passes text on, but never any part of a stop string.

    Of several matches the one that completes first wins (of those, the longest), so the result does not depend on
    how the text was cut into pieces.
    """

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""
        self.found = False

    def push(self, text: str) -> str:
        """Text that may be shown now; sets `found` when a stop string is complete, after which nothing more is due."""
        if not self._stops:
            return text
        self._held += text
        matches = [(start + len(stop), start) for stop in self._stops if (start := self._held.find(stop)) >= 0]
        self.found = bool(matches)
        shown = min(matches)[1] if matches else len(self._held) - self._possible_start()
        text, self._held = self._held[:shown], self._held[shown:]
        return text

    def flush(self) -> str:
        """What was held back, when no more text will come."""
        text, self._held = ("" if self.found else self._held), ""
        return text

    def _possible_start(self) -> int:
        """Length of the longest end of the held text that a stop string begins with."""
        longest = min(len(self._held), max(len(stop) for stop in self._stops) - 1)
        ends = (
            size for size in range(longest, 0, -1) if any(stop.startswith(self._held[-size:]) for stop in self._stops)
        )
        return next(ends, 0)
