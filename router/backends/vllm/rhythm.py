"""How often an engine is looked at, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rhythm:
    """All times, in seconds, and how often: a health check each `look_seconds` waits `health_seconds`; after `misses`
    unanswered ones the engine is down. Its identity is asked with every `identify_every`th. Where calls wait, nothing
    came back for `quiet_seconds`, and its counters of work stand still for `still_seconds`, others are asked first, and
    what it has not begun to answer goes to them. Then, or where nothing came back for `stall_seconds`, it is asked for
    one token, which has to come `core_seconds` after `stall_seconds` at the latest. One request of a load may take
    `load_seconds`; what could not be loaded is tried again after `retry_seconds`.
    """

    look_seconds: float = 1.0
    health_seconds: float = 5.0
    misses: int = 3
    identify_every: int = 10
    quiet_seconds: float = 5.0
    still_seconds: float = 5.0
    stall_seconds: float = 30.0
    core_seconds: float = 30.0
    load_seconds: float = 120.0
    retry_seconds: float = 10.0
    connect_seconds: float = 5.0
    breaker_seconds: float = 1.0
