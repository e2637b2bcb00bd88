"""Somebody who uses the admin API with a key, and a gateway to use it on."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from adapters.keyring import create_key
from adapters.keys import Role
from tests.gateway_parts import DEADLINE, Served

TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # made once: each client would load all certificates for its own
OWN_KEY = "k-0123456789abcdef"
V1 = "/admin/v1"


class Person:
    """Asks with the key `secret`, without one where it is `None`."""

    def __init__(self, url: str, secret: str | None) -> None:
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        self.client = httpx.Client(base_url=url, timeout=DEADLINE, headers=headers, verify=TLS)

    def ask(self, method: str, path: str, document: Any = None, **headers: str) -> httpx.Response:
        said = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(method, path, json=document, headers=said)

    def done(self, method: str, path: str, document: Any = None, **headers: str) -> dict[str, Any]:
        """The document of an answer that is one."""
        response = self.ask(method, path, document, **headers)
        assert response.status_code in (200, 201), response.text
        assert response.headers["x-request-id"]
        found: dict[str, Any] = response.json()
        return found


@contextmanager
def person(served: Served, role: Role, *, name: str = "", url: str = "") -> Iterator[Person]:
    """Somebody with a new key of the registry."""
    registry = served.gateway.registry
    key = create_key(registry, name or f"{role}-{registry.serial()}", role)
    served.until(lambda: served.gateway.catalog.snapshot.serial >= key.event.serial, "the key")
    somebody = Person(url or served.url, key.secret)
    with somebody.client:
        yield somebody
