"""The registry: publish, promote, rollback, disable, enable, retire. One transaction and one event each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sqlalchemy import insert, select

from . import schema
from .errors import AlreadyExists, Conflict, Refused
from .journal import Change, Journal, read_route, require_number, require_route
from .manifests import manifest_to_json
from .policy import merge_policy
from .records import event_from_row, version_from_row
from .types import AdapterVersion, Event, EventKind, Manifest, RouteState, parse_route_name

Decide = Callable[[RouteState], tuple[int | None, Mapping[str, object]]]


class Registry(Journal):
    """The operations on routes and versions. `expected_revision` makes a change conditional: `Conflict` where the
    route has moved since it was read; without it, concurrent changes both succeed, in order.
    """

    # -- routes ---------------------------------------------------------------------------------------------------

    def create_route(self, name: str, *, description: str = "", base_id: str | None = None) -> Change:
        route = parse_route_name(name, base_id=base_id)
        with self.transaction() as connection:
            if read_route(connection, route) is not None:
                raise AlreadyExists(f"route {route!r} exists already", hint="see `branchline route show`")
            return self.append(connection, "route_created", route, payload={"description": description})

    def change_route(
        self,
        name: str,
        *,
        policy: Mapping[str, object] | None = None,
        description: str | None = None,
        expected_revision: int | None = None,
    ) -> Change:
        """Set policy keys (validated, merged with what is set) or the description."""

        def decide(state: RouteState) -> tuple[None, Mapping[str, object]]:
            payload: dict[str, object] = {}
            if policy is not None:
                payload["policy"] = merge_policy(state.policy, policy)
            if description is not None:
                payload["description"] = description
            return None, payload

        return self._change(name, "route_changed", decide, None, expected_revision)

    # -- versions -------------------------------------------------------------------------------------------------

    def publish(self, name: str, manifest: Manifest) -> tuple[AdapterVersion, bool]:
        """Give `manifest`'s bytes the route's next number; the same bytes again return the version they have.

        The second value says whether a new version came to be.
        """
        with self.transaction() as connection:
            state = require_route(connection, name)
            known = connection.execute(
                select(schema.versions).where(
                    schema.versions.c.route == state.name, schema.versions.c.digest == manifest.digest
                )
            ).first()
            if known is not None:
                return version_from_row(known), False
            version = AdapterVersion(state.name, state.latest + 1, manifest, self._clock())
            connection.execute(
                insert(schema.versions).values(
                    route=version.route,
                    number=version.number,
                    digest=version.digest,
                    published_at=version.published_at,
                    manifest=manifest_to_json(manifest),
                )
            )
            self.append(connection, "published", state.name, version.number, payload={"digest": version.digest})
            return version, True

    def add_evidence(self, name: str, number: int, digest: str) -> Event:
        """Append that evidence with this digest speaks about a version; the same again returns the event it has."""
        table = schema.evidence
        with self.transaction() as connection:
            state = require_route(connection, name)
            require_number(state, number)
            mine = (table.c.route == state.name) & (table.c.number == number) & (table.c.digest == digest)
            serials = select(table.c.serial).where(mine)
            known = connection.execute(select(schema.events).where(schema.events.c.serial.in_(serials))).first()
            if known is not None:
                return event_from_row(known)
            event = self.append(connection, "evidence_added", state.name, number, payload={"digest": digest}).event
            connection.execute(
                insert(table).values(serial=event.serial, route=state.name, number=number, digest=digest)
            )
            return event

    # -- traffic --------------------------------------------------------------------------------------------------

    def promote(
        self,
        name: str,
        number: int,
        *,
        forced: str | None = None,
        gate: Mapping[str, object] | None = None,
        expected_revision: int | None = None,
    ) -> Change:
        """Make a version live. The promotion gate is the caller's (`promotion.promote`); its verdict is recorded."""

        def decide(state: RouteState) -> tuple[int, Mapping[str, object]]:
            require_number(state, number)
            if number in state.retired:
                raise Refused(f"{name}@{number} is retired", hint="publish and promote another version")
            if number == state.live:
                raise Refused(f"{name}@{number} is live already", hint="see `branchline route show`")
            return number, {"forced": forced is not None, **({"gate": dict(gate)} if gate else {})}

        return self._change(name, "promoted", decide, forced, expected_revision)

    def rollback(
        self, name: str, *, to: int | None = None, why: str | None = None, expected_revision: int | None = None
    ) -> Change:
        """Pop the stack of promotions, to the servable version below or to `to`, which must have been live."""

        def decide(state: RouteState) -> tuple[int, Mapping[str, object]]:
            target = state.previous if to is None else to
            if target is None:
                raise Refused(
                    f"route {name!r} has no earlier version to go back to",
                    hint=f"`branchline route disable {name}` sends its traffic to the base",
                )
            require_number(state, target)
            if target not in state.ever_live or target in state.retired or target == state.live:
                what = "retired" if target in state.retired else "live now" if target == state.live else "never live"
                raise Refused(f"{name}@{target} is {what}", hint="roll back to a version that was live before")
            return target, {"from": state.live}

        return self._change(name, "rolled_back", decide, why, expected_revision)

    def disable(self, name: str, *, why: str | None = None, expected_revision: int | None = None) -> Change:
        """Send the route's traffic to the base. Refused where it is disabled already."""
        return self._switch(name, "disabled", why, expected_revision)

    def enable(self, name: str, *, why: str | None = None, expected_revision: int | None = None) -> Change:
        """Give the route's traffic back to its live version."""
        return self._switch(name, "enabled", why, expected_revision)

    def retire(self, name: str, number: int, *, why: str | None = None, expected_revision: int | None = None) -> Change:
        """Take a version out for good; where it was live, the version before it is live from here on."""

        def decide(state: RouteState) -> tuple[int, Mapping[str, object]]:
            require_number(state, number)
            if number in state.retired:
                raise Refused(f"{name}@{number} is retired already", hint="see `branchline adapter list`")
            return number, {}

        return self._change(name, "retired", decide, why, expected_revision)

    def _switch(self, name: str, kind: EventKind, why: str | None, expected: int | None) -> Change:
        def decide(state: RouteState) -> tuple[None, Mapping[str, object]]:
            if state.enabled == (kind == "enabled"):
                raise Refused(f"route {name!r} is {kind} already", hint="see `branchline route show`")
            return None, {}

        return self._change(name, kind, decide, why, expected)

    def _change(self, name: str, kind: EventKind, decide: Decide, why: str | None, expected: int | None) -> Change:
        with self.transaction() as connection:
            state = require_route(connection, name)
            if expected is not None and expected != state.revision:
                raise Conflict(
                    f"route {name!r} is at revision {state.revision}, expected {expected}",
                    hint="read the route again and decide anew",
                )
            number, payload = decide(state)
            return self.append(connection, kind, state.name, number, why=why, payload=payload)
