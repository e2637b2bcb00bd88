"""Keys made, changed and revoked: one transaction and one event each. The secret is told once and kept nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace

from sqlalchemy import Connection, insert, or_, select, update

from . import schema
from .errors import AlreadyExists, NotFound
from .journal import Journal
from .keys import ApiKey, KeyLimits, Role, new_key_id, new_secret, parse_key_name, secret_digest
from .records import key_from_row, key_row
from .types import KEY_EVENTS, Event


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was made, with its secret: the only time that it is to be had."""

    key: ApiKey
    event: Event
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class KeyChange:
    """What was done to a key: its event, and the key after it."""

    key: ApiKey
    event: Event


def create_key(
    journal: Journal,
    name: str,
    role: Role,
    *,
    routes: Iterable[str] | None = None,
    limits: KeyLimits | None = None,
    why: str | None = None,
) -> NewKey:
    """Make a key. Raises `InvalidName`, `AlreadyExists` where a key in force has that name, `NotFound` for routes."""
    parse_key_name(name)
    allowed = None if routes is None else frozenset(routes)
    with journal.transaction() as connection:
        if _find(connection, name) is not None:
            raise AlreadyExists(f"a key {name!r} is in force already", hint="see `branchline key list`")
        _require_routes(connection, allowed)
        key_id = new_key_id()
        secret = new_secret(key_id)
        key = ApiKey(key_id, name, role, allowed, limits or KeyLimits(), "", digest=secret_digest(secret))
        payload = {"id": key.id, "name": name, "role": role, **_rights(key)}
        event = journal.append_for_base(connection, "key_created", why=why, payload=payload)
        key = replace(key, created_at=event.time)
        connection.execute(insert(schema.keys).values(key_row(key)))
        return NewKey(key, event, secret)


def change_key(journal: Journal, name: str, change: Callable[[ApiKey], ApiKey], *, why: str | None = None) -> KeyChange:
    """Give the key of this name or id the routes and limits that `change` makes of what it is; all else of it stays.

    Raises `NotFound` where no such key is in force, or no such route there.
    """
    with journal.transaction() as connection:
        before = _require(connection, name)
        wanted = change(before)
        key = replace(before, routes=wanted.routes, limits=wanted.limits)
        _require_routes(connection, key.routes)
        payload = {"id": key.id, "name": key.name, **_rights(key)}
        event = journal.append_for_base(connection, "key_changed", why=why, payload=payload)
        row = key_row(key)
        changed = {name: row[name] for name in ("routes", "limits")}
        connection.execute(update(schema.keys).where(schema.keys.c.id == key.id).values(changed))
        return KeyChange(key, event)


def revoke_key(journal: Journal, name: str, *, why: str | None = None) -> KeyChange:
    """End the key of this name or id for good; its name is free again. Raises `NotFound` where none is in force."""
    with journal.transaction() as connection:
        key = _require(connection, name)
        payload = {"id": key.id, "name": key.name}
        event = journal.append_for_base(connection, "key_revoked", why=why, payload=payload)
        connection.execute(update(schema.keys).where(schema.keys.c.id == key.id).values(revoked_at=event.time))
        return KeyChange(replace(key, revoked_at=event.time), event)


def keys_of(journal: Journal) -> list[ApiKey]:
    """All keys ever made, revoked ones too, oldest first."""
    with journal.reading() as connection:
        rows = connection.execute(select(schema.keys).order_by(schema.keys.c.created_at, schema.keys.c.id))
        return [key_from_row(row) for row in rows]


def key_events(journal: Journal, name: str | None = None) -> list[Event]:
    """What happened to keys, in order; to those that ever had this name or id, where one is given."""
    found = [event for event in journal.events() if event.kind in KEY_EVENTS]
    return [one for one in found if name is None or name in (one.payload["name"], one.payload["id"])]


def _rights(key: ApiKey) -> dict[str, object]:
    return {"routes": None if key.routes is None else sorted(key.routes), "limits": asdict(key.limits)}


def _require(connection: Connection, name: str) -> ApiKey:
    found = _find(connection, name)
    if found is None:
        raise NotFound(f"no key {name!r:.80} is in force", hint="see `branchline key list`")
    return found


def _find(connection: Connection, name: str) -> ApiKey | None:
    table = schema.keys
    mine = table.c.revoked_at.is_(None) & or_(table.c.name == name, table.c.id == name)
    row = connection.execute(select(table).where(mine)).first()
    return None if row is None else key_from_row(row)


def _require_routes(connection: Connection, routes: frozenset[str] | None) -> None:
    if not routes:
        return
    known = set(connection.execute(select(schema.routes.c.name)).scalars())
    missing = sorted(routes - known)
    if missing:
        raise NotFound(f"no route {', '.join(missing)}", hint="see `branchline route list`")
