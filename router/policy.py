"""Where does this request go? A pure function of the request, the scores and what is in force."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapters.errors import InvalidName
from adapters.policy import OnDisabled
from adapters.types import AUTO, AdapterRef

from .errors import Forbidden, ModelNotFound, RouteDisabled
from .types import Decision, Judged, Reason


@dataclass(frozen=True, slots=True)
class ServableVersion:
    """A version as requests can name it. `released` is true once it has been live."""

    number: int
    engine_name: str
    released: bool
    retired: bool


@dataclass(frozen=True, slots=True)
class RouteInForce:
    """What this gateway does for a route now.

    `in_force` is the version that answers, `None` for the base; `wanted` is what the registry wants there. They
    differ while a version is being warmed, or where it could not be. `cold_wait_ms`: how long a request may wait then.
    """

    name: str
    enabled: bool
    on_disabled: OnDisabled
    wanted: int | None
    in_force: int | None
    serial: int
    versions: Mapping[int, ServableVersion]
    cold_wait_ms: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything decisions depend on, immutable: a request keeps the one it began with."""

    serial: int
    base_id: str
    routes: Mapping[str, RouteInForce]
    classifier_digest: str | None = None
    exemplars_digest: str | None = None


@dataclass(frozen=True, slots=True)
class NotScored:
    """Why there are no scores for an `auto` request."""

    reason: Reason


def decide(
    model: str,
    judged: Judged | NotScored,
    snapshot: Snapshot,
    *,
    allow_unreleased: bool = False,
    permitted: frozenset[str] | None = None,
) -> Decision:
    """The decision for a request that names `model`.

    `judged` is read for `auto` only. `permitted` are the routes that the request's key may use, `None` where it may
    all; the base it may always. Raises `ModelNotFound`, `RouteDisabled` or `Forbidden`; a named adapter never falls
    to the base in silence.
    """
    if model == snapshot.base_id:
        return _base(snapshot, "base_requested")
    if model == AUTO:
        return _decide_auto(judged, snapshot, permitted)
    try:
        ref = AdapterRef.parse(model)
    except InvalidName:
        raise _not_found(model) from None
    if permitted is not None and ref.route not in permitted:  # whether it exists or not is not for this key to know
        raise Forbidden(f"this key may not use {model!r:.200}; see GET /v1/models", param="model", code="not_permitted")
    route = snapshot.routes.get(ref.route)
    if route is None:
        raise _not_found(model)
    if ref.number is None:
        return _decide_named(route, snapshot)
    return _decide_pinned(model, ref, route, allow_unreleased)


def _decide_auto(judged: Judged | NotScored, snapshot: Snapshot, permitted: frozenset[str] | None) -> Decision:
    if isinstance(judged, NotScored):
        return _base(snapshot, judged.reason)
    route = snapshot.routes.get(judged.scores.route)
    if judged.scores.abstains or route is None:
        return _base(snapshot, "abstained" if judged.scores.abstains else "no_live_version", judged=judged)
    if permitted is not None and route.name not in permitted:
        return _base(snapshot, "not_permitted", route, judged)
    return _of_route(route, snapshot, "classified", judged)


def _decide_named(route: RouteInForce, snapshot: Snapshot) -> Decision:
    if not route.enabled and route.on_disabled == "error":
        raise RouteDisabled(f"route {route.name!r} is disabled")
    if route.enabled and route.wanted is None:
        raise ModelNotFound(f"route {route.name!r} has no live version", param="model")
    return _of_route(route, snapshot, "pinned", None)


def _of_route(route: RouteInForce, snapshot: Snapshot, reason: Reason, judged: Judged | None) -> Decision:
    if not route.enabled:
        return _base(snapshot, "route_disabled", route, judged)
    if route.wanted is None:
        return _base(snapshot, "no_live_version", route, judged)
    if route.in_force is None:
        return _base(snapshot, "adapter_unavailable", route, judged)
    decision = Decision(
        engine_name=route.versions[route.in_force].engine_name,
        stage="live",
        reason=reason,
        route=route.name,
        version=route.in_force,
    )
    return _with_judgement(decision, judged)


def _decide_pinned(model: str, ref: AdapterRef, route: RouteInForce, allow_unreleased: bool) -> Decision:
    version = route.versions.get(ref.number or 0)
    if version is None or version.retired or (ref.digest16 and version.engine_name != model):
        raise _not_found(model)
    if not route.enabled:
        raise RouteDisabled(f"route {route.name!r} is disabled, so none of its versions answers")
    if not version.released and not allow_unreleased:
        raise Forbidden(
            f"{route.name}@{version.number} has never been live; ask for it with an operator key, "
            "or start the gateway with --allow-unreleased",
            param="model",
            code="not_permitted",
        )
    return Decision(version.engine_name, "pinned", "pinned", route.name, version.number)


def _base(
    snapshot: Snapshot, reason: Reason, route: RouteInForce | None = None, judged: Judged | None = None
) -> Decision:
    decision = Decision(snapshot.base_id, stage="base", reason=reason, route=route.name if route else None)
    return _with_judgement(decision, judged)


def _with_judgement(decision: Decision, judged: Judged | None) -> Decision:
    if judged is None:
        return decision
    return replace(
        decision,
        confidence=judged.scores.confidence,
        classifier_digest=judged.classifier_digest,
        exemplars_digest=judged.exemplars_digest,
        exemplar=judged.scores.exemplar,
    )


def _not_found(model: str) -> ModelNotFound:
    return ModelNotFound(f"the model {model!r:.200} does not exist; see GET /v1/models", param="model")
