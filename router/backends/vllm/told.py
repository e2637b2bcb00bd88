"""What the process that looks after engines tells the others, which open their calls by themselves."""

from __future__ import annotations

from dataclasses import dataclass

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


@dataclass(frozen=True, slots=True)
class ToldEngines:
    """All engines, and the engine names of the versions that shall be resident."""

    engines: tuple[ToldEngine, ...] = ()
    held: tuple[str, ...] = ()
