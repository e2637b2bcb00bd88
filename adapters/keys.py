"""API keys: what each may do and how much, and the secret a client shows, which is never kept.

A secret holds 256 random bits, so its sha256 is as good as a slow hash would be: there is nothing to guess.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import asdict, dataclass, field
from typing import Literal, get_args

from .errors import BadInput, InvalidName

Role = Literal["inference", "operator", "admin"]
MAX_LIMIT = 2**31 - 1
ROLES: tuple[Role, ...] = get_args(Role)  # each may do what those before it may


RESERVED_KEY_NAMES = frozenset({"anonymous", "other", "owner"})  # what metrics call those without a name of their own
_NAME = re.compile(r"[a-z][a-z0-9._-]{0,62}")
_ID = re.compile(r"[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What one gateway lets a key do; `None` is no limit. Raises `BadInput` for a limit below 1."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None

    def __post_init__(self) -> None:
        wrong = {
            name: value for name, value in asdict(self).items() if value is not None and not 1 <= value <= MAX_LIMIT
        }
        if wrong:
            found = ", ".join(f"{name} is {value}" for name, value in wrong.items())
            raise BadInput(f"{found}; expected 1 to {MAX_LIMIT}", hint="leave a limit out to have none")


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as the registry has it; `routes` is `None` where all are allowed.

    `digest` is the sha256 of its secret, in hexadecimal digits: events do not tell it, only the registry's row does.
    """

    id: str
    name: str
    role: Role
    routes: frozenset[str] | None
    limits: KeyLimits
    created_at: str
    revoked_at: str | None = None
    digest: str = field(default="", repr=False, compare=False)


def parse_key_name(text: str) -> str:
    """Validate the name of a key: `[a-z][a-z0-9._-]{0,62}`, not reserved, nothing that could be a key's id."""
    if not _NAME.fullmatch(text) or _ID.fullmatch(text) or text in RESERVED_KEY_NAMES:
        reserved = ", ".join(sorted(RESERVED_KEY_NAMES))
        raise InvalidName(
            f"key name {text!r:.80} does not match [a-z][a-z0-9._-]{{0,62}}, is the form of an id, or is reserved",
            hint=f"use lower-case letters, digits, dots and dashes, starting with a letter; not {reserved}",
        )
    return text


def new_key_id() -> str:
    """Twelve random hexadecimal digits. An id is no secret."""
    return secrets.token_hex(6)


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
