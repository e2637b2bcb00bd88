"""Who asks: the key behind a request, what it may do, and how much of it."""

from __future__ import annotations

from dataclasses import dataclass

from adapters.keys import ROLES, KeyLimits, Role


@dataclass(frozen=True, slots=True)
class Principal:
    """What one key may do. `key_id` is `None` for who shows none, and for the server's own key.

    `routes` are those it may name or be routed to, `None` where it may all of them; the base it may always.
    """

    key_id: str | None
    name: str
    role: Role
    routes: frozenset[str] | None
    limits: KeyLimits

    def may(self, role: Role) -> bool:
        """Whether this key may do what `role` may: an admin may all, an operator what inference may."""
        return ROLES.index(self.role) >= ROLES.index(role)

    def may_use(self, route: str) -> bool:
        """Whether requests of this key may reach versions of `route`."""
        return self.routes is None or route in self.routes


ANONYMOUS = Principal(None, "anonymous", "inference", None, KeyLimits())
"""Whoever asks a server that has no keys."""
