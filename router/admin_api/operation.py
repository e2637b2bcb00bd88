"""What one operation of the admin API is: who may ask for it, what it takes, what does it, what it answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from adapters.home import Home
from adapters.keys import Role
from adapters.registry import Registry
from adapters.store import Store

from .bodies import Nothing

PREFIX = "/admin/v1"
Method = Literal["GET", "POST", "PATCH"]
Document = dict[str, Any]
Follows = Literal["events", "exemplars"]


@dataclass(frozen=True, slots=True)
class Place:
    """What operations know of their server: its home, its base model as it was given, and the folders that adapters
    may be loaded from.
    """

    home: Home
    base: str
    lora_folders: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, read and checked. `registry` writes its events as the key that asks.

    `expected` is the route revision of `If-Match`; `forced` the reason that a header gave for overruling a gate.
    """

    registry: Registry
    store: Store
    place: Place
    route: str
    number: int
    name: str
    query: Any
    body: Any
    expected: int | None
    forced: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it. `document` is JSON, or text for those who read no JSON.

    `revision` is the route's, for the ETag. `serial` is what gateways must have applied for it to be in force, `route`
    the one they are asked about. `kept` is answered to a repetition, where that may not see all of `document`.
    """

    document: Document | str
    status: int = 200
    revision: int | None = None
    serial: int | None = None
    route: str | None = None
    kept: Document | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """`act` runs in a thread; it may block, and raises what the registry raises.

    `of_route`: its path names a route, which a key with a list of routes must have; such a key may do nothing that
    concerns more than its routes. `conditional` ones heed `If-Match`. `again`: doing it twice changes no more than
    once, so after a crash it is done again. `answers` describes the document, an object where nothing is said.
    """

    name: str
    method: Method
    path: str
    role: Role
    summary: str
    act: Callable[[Asked], Answer]
    body: type[BaseModel] | None = None
    query: type[BaseModel] = Nothing
    status: tuple[int, ...] = (200,)
    of_route: bool = False
    conditional: bool = False
    again: bool = False
    follows: Follows | None = None
    answers: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})

    @property
    def writes(self) -> bool:
        return self.method != "GET"
