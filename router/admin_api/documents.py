"""Routes, versions, keys and gateways as the admin API tells them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from adapters.convergence import Convergence, is_alive
from adapters.fold import route_to_json
from adapters.journal import Change
from adapters.keys import ApiKey
from adapters.manifests import manifest_to_json
from adapters.policy import Policy
from adapters.records import event_row
from adapters.types import AdapterVersion, Event, GatewayRow, RouteState

from .operation import Answer, Document


def route_document(state: RouteState) -> Document:
    """What is wanted of a route."""
    policy = Policy.of(state.policy).to_json()
    return {**route_to_json(state), "live": state.live, "previous": state.previous, "policy": policy}


def changed(change: Change, **more: object) -> Answer:
    """A route as it stands after a change, with its event."""
    state = change.state
    document = {**route_document(state), "event": event_row(change.event), **more}
    return Answer(document, revision=state.revision, serial=change.event.serial, route=state.name)


def done(event: Event, **more: object) -> Answer:
    """What an event that belongs to no route has done."""
    return Answer({"event": event_row(event), **more}, serial=event.serial)


def version_document(version: AdapterVersion, state: RouteState) -> Document:
    return {
        "route": version.route,
        "number": version.number,
        "stage": state.stage(version.number),
        "engine_name": version.engine_name,
        "published_at": version.published_at,
        "manifest": manifest_to_json(version.manifest),
    }


def key_document(key: ApiKey) -> Document:
    """A key without what tells it."""
    document = asdict(key)
    del document["digest"]
    return {**document, "routes": None if key.routes is None else sorted(key.routes)}


def gateway_document(row: GatewayRow, wanted: Mapping[str, str | None]) -> Document:
    """What one gateway has in force, beside what is wanted: engine names, `null` where the base answers."""
    routes = {
        name: {
            "wanted": wanted.get(name),
            "in_force": one.engine_name,
            "serial": one.serial,
            "problem": one.problem,
        }
        for name, one in row.routes.items()
    }
    return {
        "id": row.gateway_id,
        "alive": is_alive(row),
        "last_seen": row.last_seen,
        "serial": row.serial,
        "routes": routes,
        "classifier_digest": row.classifier_digest,
        "exemplars_digest": row.exemplars_digest,
        "base_id": row.base_id,
        "base_fingerprint": row.base_fingerprint,
    }


def convergence_document(found: Convergence) -> Document:
    """Which gateways follow, why the others do not, and which were not heard of for how many seconds."""
    return {
        "gateways": list(found.in_force),
        "problems": found.problems,
        "silent": {gateway: round(seconds, 1) for gateway, seconds in found.silent.items()},
        "waited_ms": round(found.waited_ms, 1),
    }
