"""Who is asking, and may a page of another origin? One key for a simple server."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import urlsplit

from .errors import ConfigInvalid, Forbidden, Unauthorized

MIN_KEY_CHARACTERS = 16


@dataclass(frozen=True, slots=True)
class Gatekeeper:
    """Checks a request's headers. `key_digest` is the sha256 of the key, `None` where no key is asked for.

    `loopback` is true for a server only this machine can reach: there the Host must be this machine too, so that
    no web page reaches it through a name that was bent to 127.0.0.1.
    """

    key_digest: bytes | None
    loopback: bool

    @classmethod
    def for_bind(cls, host: str, key: str | None) -> Gatekeeper:
        """Raises `ConfigInvalid` for a bind beyond loopback without a key, and for a key too short to be one."""
        loopback = is_loopback(host)
        if key is None and not loopback:
            raise ConfigInvalid(
                f"refusing to listen on {host} without a key",
                hint="set BRANCHLINE_API_KEY, or listen on 127.0.0.1",
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
        return cls(None if key is None else hashlib.sha256(key.encode()).digest(), loopback)

    def require_own_site(self, headers: Mapping[str, str]) -> None:
        """Raise `Forbidden` for a foreign Origin or Host."""
        host = headers.get("host", "")
        if self.loopback and not is_loopback(_host_name(host)):
            raise Forbidden(f"Host {host!r:.100} is not this server", code="foreign_host")
        origin = headers.get("origin")
        if origin is not None and _host_name(origin.partition("://")[2]) != _host_name(host):
            raise Forbidden(f"Origin {origin!r:.100} may not use this server", code="foreign_origin")

    def require_key(self, headers: Mapping[str, str]) -> None:
        """Raise `Unauthorized` unless the bearer token is the key, compared in constant time."""
        if self.key_digest is None:
            return
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = hashlib.sha256(token.strip().encode()).digest()
        if not hmac.compare_digest(given, self.key_digest) or scheme.lower() != "bearer":
            raise Unauthorized("missing or wrong API key; send 'Authorization: Bearer KEY'")


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
