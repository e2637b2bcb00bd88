"""What parent and workers tell each other, beside snapshots and settings, which are values of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from adapters.keys import ApiKey

from ..policy import Snapshot
from ..settings import Settings
from ..types import EngineStatus


@dataclass(frozen=True, slots=True)
class Hello:
    """A worker's first message. `number` counts the workers of a gateway from 1.

    Of the server's own key only `key_digest` is told, in hexadecimal digits; `loopback` as in `Gatekeeper`. With
    `follows_engines` the worker opens its calls to the engines by itself; else they go to the parent's.
    """

    number: int
    settings: Settings
    base_id: str
    key_digest: str | None
    loopback: bool
    follows_engines: bool = False


@dataclass(frozen=True, slots=True)
class Told:
    """What is in force from now on: all of it where `whole`, else its routes and its keys are those that changed."""

    sequence: int
    snapshot: Snapshot
    whole: bool
    keys: tuple[ApiKey, ...] = ()


@dataclass(frozen=True, slots=True)
class JudgedWith:
    """What a worker judges with, and why that is not what is wanted."""

    classifier_digest: str | None = None
    exemplars_digest: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """What only the parent knows at any moment."""

    ready: bool = False
    engines: tuple[EngineStatus, ...] = ()
    problems: Mapping[str, str] | None = None
    warming: tuple[str, ...] = ()
    classifier_problem: str | None = None
    stale_seconds: float = 0.0
