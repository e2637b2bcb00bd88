"""Who is asking, and may a page of another origin? The registry's keys, and one key for a simple server."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from urllib.parse import urlsplit

from .errors import ConfigInvalid, Forbidden, Unauthorized
from .keys.principal import ANONYMOUS, OWNER, PASSER_BY, KeyRing, Principal, no_keys

MIN_KEY_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """Checks a request's headers. `key_digest` is the sha256 of the server's own key, `None` where it has none.

    `keys` tells the registry's keys as they are now. Where there are neither, no key is asked for. `loopback` is true
    for a server only this machine can reach: there the Host must be this machine too, so that no web page reaches it
    through a name that was bent to 127.0.0.1.
    """

    key_digest: bytes | None = field(repr=False)
    loopback: bool
    keys: Callable[[], KeyRing] = no_keys

    @classmethod
    def for_bind(cls, host: str, key: str | None, ring: KeyRing | None = None) -> Gatekeeper:
        """`key` is the server's own, `ring` what the registry has now.

        Raises `ConfigInvalid` for a bind beyond loopback without a key, and for a key too short to be one.
        """
        ring = ring or KeyRing()
        loopback = is_loopback(host)
        if key is None and not loopback and not ring.in_force:
            raise ConfigInvalid(
                f"refusing to listen on {host} without a key",
                hint="make one with `branchline key create`, set BRANCHLINE_API_KEY, or listen on 127.0.0.1",
            )
        if key is not None and len(key) < MIN_KEY_CHARACTERS:
            raise ConfigInvalid(
                f"BRANCHLINE_API_KEY has {len(key)} characters, expected at least {MIN_KEY_CHARACTERS}",
                hint="make one with `openssl rand -hex 32`",
            )
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
            raise ConfigInvalid(
                "BRANCHLINE_API_KEY holds a space, a line end or a character outside ASCII, which no header can carry",
                hint="make one with `openssl rand -hex 32`",
            )
        digest = None if key is None else hashlib.sha256(key.encode()).digest()
        return cls(digest, loopback, lambda: ring)

    def following(self, keys: Callable[[], KeyRing]) -> Gatekeeper:
        """The same, which asks `keys` for the registry's keys from here on."""
        return replace(self, keys=keys)

    def require_own_site(self, headers: Mapping[str, str]) -> None:
        """Raise `Forbidden` for a foreign Origin or Host."""
        host = headers.get("host", "")
        if self.loopback and not is_loopback(_host_name(host)):
            raise Forbidden(f"Host {host!r:.100} is not this server", code="foreign_host")
        origin = headers.get("origin")
        if origin is not None and _host_name(origin.partition("://")[2]) != _host_name(host):
            raise Forbidden(f"Origin {origin!r:.100} may not use this server", code="foreign_origin")

    def principal(self, headers: Mapping[str, str]) -> Principal:
        """Who shows which key; raises `Unauthorized` for none or a wrong one where one is asked for."""
        ring = self.keys()
        if self.key_digest is None and not ring.asks:
            return ANONYMOUS
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        given = hashlib.sha256(token.encode()).digest()
        found: Principal | None = None
        if self.key_digest is not None and hmac.compare_digest(given, self.key_digest):
            found = OWNER
        elif ring.asks:
            found = ring.find(token, given)
        if found is None or scheme.lower() != "bearer":
            raise Unauthorized("missing or wrong API key; send 'Authorization: Bearer KEY'")
        return found

    def visitor(self, headers: Mapping[str, str]) -> Principal:
        """As `principal`, on pages that are open to all."""
        try:
            return self.principal(headers)
        except Unauthorized:
            return PASSER_BY


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address, without port) is this machine's loopback."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _host_name(netloc: str) -> str:
    try:
        return urlsplit(f"//{netloc}").hostname or ""
    except ValueError:
        return ""
