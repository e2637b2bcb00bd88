"""Who asks: the key behind a request, what it may do, and how much of it."""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from adapters.keys import ROLES, ApiKey, KeyLimits, Role, key_id_of


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

PASSER_BY = Principal(None, "passer-by", "inference", frozenset(), KeyLimits())
"""Whoever shows no key that is one, on a page that is open to all of a server that has keys."""

OWNER = Principal(None, "owner", "operator", None, KeyLimits())
"""Whoever shows the key that a simple server was started with."""


@dataclass(frozen=True, slots=True)
class KeyRing:
    """The registry's keys as a gateway knows them, revoked ones too. Immutable: a change makes another ring."""

    keys: Mapping[str, ApiKey] = field(default_factory=dict)
    _principals: Mapping[str, tuple[bytes, Principal]] = field(default_factory=dict, repr=False)

    def updated(self, changed: Iterable[ApiKey]) -> KeyRing:
        """With `changed` in the place of what those keys were."""
        keys, in_force = dict(self.keys), dict(self._principals)
        for key in changed:
            keys[key.id] = key
            in_force.pop(key.id, None)
            if not key.revoked_at:
                in_force[key.id] = bytes.fromhex(key.digest), _principal(key)
        return KeyRing(keys, in_force)

    @property
    def asks(self) -> bool:
        """Whether requests need a key: as soon as one was ever made, so that revoking the last one opens nothing."""
        return bool(self.keys)

    @property
    def in_force(self) -> int:
        """How many keys let somebody in."""
        return len(self._principals)

    def find(self, secret: str, digest: bytes) -> Principal | None:
        """Who shows `secret`, whose sha256 is `digest`. Found by its id, which is not secret, then compared in
        constant time.
        """
        digest_of_key, principal = self._principals.get(key_id_of(secret) or "", (b"", None))
        return principal if hmac.compare_digest(digest, digest_of_key) else None


def no_keys() -> KeyRing:
    return KeyRing()


def _principal(key: ApiKey) -> Principal:
    return Principal(key.id, key.name, key.role, key.routes, key.limits)
