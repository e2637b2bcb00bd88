"""Percentiles, and figures of several rounds in one line."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from .results import Row


def percentile(values: Sequence[float], share: float) -> float | None:
    """The smallest value that at least `share` (0 to 1) of all do not exceed; `None` of nothing."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)] if ordered else None


def row_of_rounds(what: str, values: Sequence[float], unit: str, note: str = "") -> Row:
    """The median of a figure's rounds; their range goes into the note."""
    if not values:
        return Row(what, None, unit, note or "no round came to an end")
    spread = f"{min(values):.3g} to {max(values):.3g} in {len(values)} rounds"
    return Row(what, statistics.median(values), unit, f"{spread}; {note}" if note else spread)


def row_of_times(what: str, seconds: Sequence[float], share: float, note: str = "") -> Row:
    """A percentile of times, in milliseconds."""
    found = percentile(seconds, share)
    return Row(what, None if found is None else found * 1000, "ms", note)
