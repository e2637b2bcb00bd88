"""API keys: create, list, change and revoke them. A secret is told once, also to who asks again."""

from __future__ import annotations

from dataclasses import replace

from adapters.keyring import change_key, create_key, keys_of, revoke_key
from adapters.keys import ApiKey, KeyLimits
from adapters.records import event_row

from ..errors import InvalidRequest
from .bodies import Because, KeyChange, KeyFilter, KeyLimitsGiven, NewKey, Waits
from .documents import key_document
from .operation import Answer, Asked, Operation


def _list(asked: Asked) -> Answer:
    wanted: KeyFilter = asked.query
    found = [one for one in keys_of(asked.registry) if wanted.revoked or one.revoked_at is None]
    return Answer({"keys": [key_document(one) for one in found]})


def _create(asked: Asked) -> Answer:
    wanted: NewKey = asked.body
    limits = _limits(KeyLimits(), wanted.limits)
    made = create_key(asked.registry, wanted.name, wanted.role, routes=wanted.routes, limits=limits, why=wanted.why)
    kept = {**key_document(made.key), "event": event_row(made.event), "secret": None}
    return Answer({**kept, "secret": made.secret}, 201, serial=made.event.serial, kept=kept)


def _change(asked: Asked) -> Answer:
    wanted: KeyChange = asked.body
    if not wanted.model_fields_set & {"routes", "limits"}:
        raise InvalidRequest("expected 'routes' or 'limits'", param="routes")

    def changed(before: ApiKey) -> ApiKey:
        given = None if wanted.routes is None else frozenset(wanted.routes)
        routes = given if "routes" in wanted.model_fields_set else before.routes
        return replace(before, routes=routes, limits=_limits(before.limits, wanted.limits))

    change = change_key(asked.registry, asked.name, changed, why=wanted.why)
    return Answer({**key_document(change.key), "event": event_row(change.event)}, serial=change.event.serial)


def _revoke(asked: Asked) -> Answer:
    change = revoke_key(asked.registry, asked.name, why=asked.body.why)
    return Answer({**key_document(change.key), "event": event_row(change.event)}, serial=change.event.serial)


def _limits(before: KeyLimits, given: KeyLimitsGiven) -> KeyLimits:
    return replace(before, **{name: getattr(given, name) for name in given.model_fields_set})


KEYS = (
    Operation("list_keys", "GET", "/keys", "admin", "Keys, never their secrets.", _list, query=KeyFilter),
    Operation(
        "create_key",
        "POST",
        "/keys",
        "admin",
        "Make a key. Its secret is in this answer and nowhere else.",
        _create,
        NewKey,
        Waits,
        status=(201,),
        follows="events",
    ),
    Operation(
        "change_key",
        "PATCH",
        "/keys/{name}",
        "admin",
        "Give a key (by name or id) other routes or limits.",
        _change,
        KeyChange,
        Waits,
        follows="events",
    ),
    Operation(
        "revoke_key",
        "POST",
        "/keys/{name}/revoke",
        "admin",
        "End a key (by name or id) for good.",
        _revoke,
        Because,
        Waits,
        follows="events",
    ),
)
