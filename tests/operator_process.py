"""An operator who never rests: `python -m tests.operator_process URL NAME SEED`.

Changes two routes at random for ever, half of the time on condition that the route is as it was read. Prints a line of
JSON for each change that was acknowledged: the event's serial, what was done to which route, the revision expected.
"""

from __future__ import annotations

import json
import random
import sys

from adapters.errors import Conflict, Refused
from adapters.journal import Change
from adapters.registry import Registry

ROUTES = ("sql", "regex")
ACTS = ("promoted", "promoted", "rolled_back", "disabled", "enabled", "route_changed")


def main(url: str, name: str, seed: int) -> None:
    registry, chosen = Registry.open(url, actor=name), random.Random(seed)
    while True:
        act, route = chosen.choice(ACTS), chosen.choice(ROUTES)
        expected = registry.route(route).revision if chosen.random() < 0.5 else None
        try:
            change = apply(registry, act, route, chosen.randint(1, 3), expected)
        except (Refused, Conflict):
            continue
        print(json.dumps([change.event.serial, act, route, expected]), flush=True)  # noqa: T201


def apply(registry: Registry, act: str, route: str, number: int, expected: int | None) -> Change:
    match act:
        case "promoted":
            return registry.promote(route, number, forced="race", expected_revision=expected)
        case "rolled_back":
            return registry.rollback(route, expected_revision=expected)
        case "disabled":
            return registry.disable(route, expected_revision=expected)
        case "enabled":
            return registry.enable(route, expected_revision=expected)
        case _:
            return registry.change_route(route, policy={"min_items": number}, expected_revision=expected)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
