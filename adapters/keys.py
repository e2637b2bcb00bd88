"""API keys: what each may do and how much, and the secret a client shows, which is never kept.

A secret holds 256 random bits, so its sha256 is as good as a slow hash would be: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Literal, get_args

Role = Literal["inference", "operator", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one gateway lets a key do; `None` is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the registry has it. `digest` is the sha256 of its secret; `routes` is `None` where all are allowed."""

    id: str
    name: str
    role: Role
    digest: str = field(repr=False)
    routes: frozenset[str] | None
    limits: KeyLimits
    created_at: str
    revoked_at: str | None = None


def new_secret(key_id: str) -> str:
    """A secret for the key with this id: `bl-ID-` and 43 letters that hold 256 random bits."""
    return f"bl-{key_id}-{secrets.token_urlsafe(32)}"


def secret_digest(secret: str) -> str:
    """What is kept of a secret, in hexadecimal digits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def key_id_of(secret: str) -> str | None:
    """The id of the key that a secret claims to be, `None` for what has not the form of one."""
    parts = secret.split("-", 2)
    return parts[1] if len(parts) == 3 and parts[0] == "bl" else None
