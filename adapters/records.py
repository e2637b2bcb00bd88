"""Rows of the registry's tables to and from the nouns of `types`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from sqlalchemy import Row

from .keys import ApiKey, KeyLimits
from .manifests import parse_manifest
from .types import AdapterVersion, ClassifierVersion, Event, GatewayRow, InForce, RouteName


def event_row(event: Event) -> dict[str, object]:
    return {**asdict(event), "payload": dict(event.payload)}


def event_from_row(row: Row[*tuple[object, ...]]) -> Event:
    return Event(**row._mapping)  # SQLAlchemy's documented mapping view of a row


def version_from_row(row: Row[*tuple[object, ...]]) -> AdapterVersion:
    values = row._mapping
    return AdapterVersion(
        RouteName(values["route"]), values["number"], parse_manifest(values["manifest"]), values["published_at"]
    )


def classifier_from_row(row: Row[*tuple[object, ...]]) -> ClassifierVersion:
    return ClassifierVersion(**row._mapping)


def key_row(key: ApiKey) -> dict[str, object]:
    routes = None if key.routes is None else sorted(key.routes)
    return {**asdict(key), "routes": routes, "limits": asdict(key.limits)}


def key_from_row(row: Row[*tuple[object, ...]]) -> ApiKey:
    values = row._mapping
    routes = None if values["routes"] is None else frozenset(values["routes"])
    return ApiKey(**{**values, "routes": routes, "limits": KeyLimits(**values["limits"])})


def gateway_document(gateway: GatewayRow) -> dict[str, object]:
    """What of a heartbeat is stored as JSON."""
    routes = {name: asdict(in_force) for name, in_force in gateway.routes.items()}
    return {
        "routes": routes,
        "classifier_digest": gateway.classifier_digest,
        "base_id": gateway.base_id,
        "base_fingerprint": gateway.base_fingerprint,
        "exemplars_digest": gateway.exemplars_digest,
    }


def gateway_from_row(row: Row[*tuple[object, ...]]) -> GatewayRow:
    values = row._mapping
    document: Mapping[str, object] = values["document"]
    routes = document.get("routes")
    return GatewayRow(
        gateway_id=values["gateway_id"],
        last_seen=values["last_seen"],
        serial=values["serial"],
        routes={name: InForce(**one) for name, one in routes.items()} if isinstance(routes, dict) else {},
        classifier_digest=_text(document, "classifier_digest"),
        base_id=_text(document, "base_id"),
        base_fingerprint=_text(document, "base_fingerprint"),
        exemplars_digest=_text(document, "exemplars_digest"),
    )


def _text(document: Mapping[str, object], key: str) -> str | None:
    found = document.get(key)
    return found if isinstance(found, str) else None
