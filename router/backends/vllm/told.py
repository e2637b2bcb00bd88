"""What the process that looks after engines tells the others, which open their calls by themselves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ...types import EngineState
from .identity import Identity


@dataclass(frozen=True, slots=True)
class ToldAddress:
    """Where an engine is now; keeps the contract of `Address`."""

    url: str
    key: str | None
    generation: int


@dataclass(frozen=True, slots=True)
class ToldEngine:
    """One engine. `severed` grows when answers that had begun were ended; `residents` as `Residents.names`."""

    name: str
    address: ToldAddress
    state: EngineState
    drained: bool
    problem: str | None
    identity: Identity | None
    starts: int
    severed: int
    residents: tuple[str, ...]
    stalled: bool = False


class Work(NamedTuple):
    """What an engine does for a process that opens calls by itself: how many of them, how many of these it has not
    begun to answer, how many seconds ago it was heard, and the versions used since that was told last, by engine name,
    the most recently used one last.
    """

    outstanding: int = 0
    waiting: int = 0
    heard_seconds_ago: float = 0.0
    used: tuple[str, ...] = ()


WorkOfEngines = Mapping[str, Work]


@dataclass(frozen=True, slots=True)
class ToldEngines:
    """All engines, and the engine names of the versions that shall be resident."""

    engines: tuple[ToldEngine, ...] = ()
    held: tuple[str, ...] = ()
