"""The nouns of the control plane: frozen, validated on construction, no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NewType

from .errors import InvalidName

RouteName = NewType("RouteName", str)
Json = Mapping[str, object]

Stage = Literal["published", "live", "previous", "retired"]
EventKind = Literal[
    "route_created",
    "route_changed",
    "route_forgotten",
    "examples_changed",
    "corrected",
    "correction_removed",
    "feedback_rejected",
    "published",
    "evidence_added",
    "promoted",
    "rolled_back",
    "disabled",
    "enabled",
    "retired",
    "classifier_published",
    "classifier_evidence_added",
    "classifier_promoted",
    "classifier_rolled_back",
    "key_created",
    "key_changed",
    "key_revoked",
]

KEY_EVENTS: frozenset[EventKind] = frozenset({"key_created", "key_changed", "key_revoked"})
AUTO = "auto"  # as a model: let the classifier choose
RESERVED_NAMES = frozenset({AUTO, "base", "oos"})
_ROUTE = re.compile(r"[a-z][a-z0-9-]{0,62}")
_REF = re.compile(r"(?P<route>[a-z][a-z0-9-]{0,62})(?:@(?P<number>[1-9][0-9]{0,8})(?:\.(?P<digest>[0-9a-f]{16}))?)?")


def parse_route_name(text: str, *, base_id: str | None = None) -> RouteName:
    """Validate `text` as a route name: `[a-z][a-z0-9-]{0,62}`, not reserved, not the base's id."""
    if not _ROUTE.fullmatch(text):
        raise InvalidName(
            f"route name {text!r} does not match [a-z][a-z0-9-]{{0,62}}",
            hint="use lower-case letters, digits and dashes, starting with a letter",
        )
    if text in RESERVED_NAMES or text == base_id:
        raise InvalidName(f"route name {text!r} is reserved", hint="choose another name")
    return RouteName(text)


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """A route (`sql`), a version of it (`sql@3`) or an engine name (`sql@3.<16 hex>`)."""

    route: RouteName
    number: int | None = None
    digest16: str | None = None

    @classmethod
    def parse(cls, text: str) -> AdapterRef:
        """The inverse of `str(ref)`; raises `InvalidName` for anything else."""
        match = _REF.fullmatch(text)
        if match is None:
            raise InvalidName(f"{text!r} names no version", hint="write ROUTE@N, for example sql@3")
        number = match["number"]
        return cls(RouteName(match["route"]), int(number) if number else None, match["digest"])

    def __str__(self) -> str:
        number = "" if self.number is None else f"@{self.number}"
        return f"{self.route}{number}{'.' + self.digest16 if self.digest16 else ''}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a version is, without its place in a route: written last into its store folder.

    `digest` is the sha256 over the digests of `files`; `rank` is the largest rank in use;
    `targets` are the module names that carry weights, as in the safetensors keys.
    """

    digest: str
    files: Mapping[str, str]
    size_bytes: int
    base_id: str
    base_fingerprint: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    training: Json = field(default_factory=dict)
    data_digests: Mapping[str, str] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterVersion:
    """An immutable numbered version of a route."""

    route: RouteName
    number: int
    manifest: Manifest
    published_at: str

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def ref(self) -> AdapterRef:
        return AdapterRef(self.route, self.number)

    @property
    def engine_name(self) -> str:
        """What an engine calls these bytes; new bytes always get a new name."""
        return f"{self.route}@{self.number}.{self.digest[:16]}"


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the append-only history. `payload` holds digests and numbers, never exemplar text."""

    serial: int
    time: str
    kind: EventKind
    route: RouteName | None
    number: int | None
    actor: str
    why: str | None
    payload: Json = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RouteState:
    """A fold of a route's events.

    `stack` is the stack of promotions, oldest first; a rollback pops it. `revision` moves with every
    traffic or policy change and not with publications, so that publishing never makes a promote fail.
    """

    name: RouteName
    revision: int = 1
    description: str = ""
    policy: Json = field(default_factory=dict)
    enabled: bool = True
    latest: int = 0
    stack: tuple[int, ...] = ()
    ever_live: frozenset[int] = frozenset()
    retired: frozenset[int] = frozenset()
    examples_digest: str | None = None

    @property
    def servable_stack(self) -> tuple[int, ...]:
        """The stack without retired versions and without immediate repeats."""
        kept: list[int] = []
        for number in self.stack:
            if number not in self.retired and (not kept or kept[-1] != number):
                kept.append(number)
        return tuple(kept)

    @property
    def live(self) -> int | None:
        """The version that answers while the route is enabled."""
        servable = self.servable_stack
        return servable[-1] if servable else None

    @property
    def previous(self) -> int | None:
        """What a rollback would bring back."""
        servable = self.servable_stack
        return servable[-2] if len(servable) > 1 else None

    def stage(self, number: int) -> Stage:
        if number in self.retired:
            return "retired"
        if number == self.live:
            return "live"
        return "previous" if number in self.ever_live else "published"


@dataclass(frozen=True, slots=True)
class ClassifierVersion:
    """A published classifier artifact; `summary` is what the fit reported (routes, rows, calibration)."""

    number: int
    digest: str
    summary: Json
    published_at: str


@dataclass(frozen=True, slots=True)
class ClassifierState:
    """A fold of the classifier's events; `stack` as in `RouteState`."""

    latest: int = 0
    stack: tuple[int, ...] = ()

    @property
    def live(self) -> int | None:
        return self.stack[-1] if self.stack else None


@dataclass(frozen=True, slots=True)
class InForce:
    """What one gateway does for one route: `serial` of the route's last applied event, and how it went."""

    serial: int
    engine_name: str | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class GatewayRow:
    """A gateway's heartbeat; rows live outside the event log.

    `base_fingerprint` is `None` where nobody could look at the base its engine serves, and in rows of a Branchline
    that did not tell `base_id`.
    """

    gateway_id: str
    last_seen: float
    serial: int
    routes: Mapping[str, InForce]
    classifier_digest: str | None = None
    base_id: str | None = None
    base_fingerprint: str | None = None
    exemplars_digest: str | None = None

    @property
    def base_unverified(self) -> bool:
        """Whether it says itself that its base was not looked at."""
        return self.base_id is not None and self.base_fingerprint is None
