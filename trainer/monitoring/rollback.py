"""Take a version back that was found worse: the registry's own rollback, with the reason in the history."""

from __future__ import annotations

import time

from adapters.convergence import wait_in_force
from adapters.errors import Conflict
from adapters.journal import Change
from adapters.registry import Registry
from adapters.types import AdapterVersion

_ATTEMPTS = 20


def take_back(registry: Registry, version: AdapterVersion, why: str) -> dict[str, object]:
    """Roll the route back from `version`, or disable it where nothing is below, and wait until it is in force.

    Never moves another version than the one that was found worse. Returns what was done, as an event to report.
    """
    started = time.monotonic()
    change = _change(registry, version, why)
    if change is None:
        return {"event": "left_alone", "version": str(version.ref), "why": "it is no longer live"}
    found = wait_in_force(registry, change.event.serial, route=version.route, started=started)
    return {
        "event": change.event.kind,
        "version": str(version.ref),
        "live": change.state.live if change.state.enabled else None,
        "serial": change.event.serial,
        "in_force": str(found),
        "why": why,
    }


def _change(registry: Registry, version: AdapterVersion, why: str) -> Change | None:
    for _ in range(_ATTEMPTS):
        state = registry.route(version.route)
        if state.live != version.number or not state.enabled:
            return None
        change = registry.disable if state.previous is None else registry.rollback
        try:
            return change(state.name, why=why, expected_revision=state.revision)
        except Conflict:
            continue
    raise Conflict(f"route {version.route!r} keeps changing", hint="see `branchline route history`")
