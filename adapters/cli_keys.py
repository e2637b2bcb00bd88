"""The `key` group: who may ask the gateways of a registry, for what, and how much."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import click

from .command import open_home, wait_clock
from .convergence import wait_in_force
from .home import Home, home_options
from .keyring import change_key, create_key, key_events, keys_of, revoke_key
from .keys import MAX_LIMIT, ROLES, ApiKey, KeyLimits, Role
from .output import json_option, note, print_json, print_table
from .records import event_row
from .registry import Registry

Command = Callable[..., None]


class Limit(click.IntRange):
    """A number over 0, or `none` for no limit, which is 0 here."""

    name = "limit"

    def __init__(self) -> None:
        super().__init__(1, MAX_LIMIT)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        return 0 if value == "none" else int(super().convert(value, param, ctx))


def limit_options(command: Command) -> Command:
    """What one gateway lets a key do; those not given stay as they are."""
    for name, what in (
        ("--max-concurrent", "Requests at a time"),
        ("--tokens-per-minute", "Tokens of prompts and answers in a minute"),
        ("--requests-per-minute", "Requests in a minute"),
    ):
        command = click.option(name, type=Limit(), metavar="N", help=f"{what}, per gateway; `none`: no limit.")(command)
    return command


why_option = click.option("--why", help="Why, for the history.")
no_wait_option = click.option("--no-wait", is_flag=True, help="Do not wait until gateways follow.")


@click.group()
def key() -> None:
    """Create API keys, list, change and revoke them."""


@key.command()
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), required=True, help="What the key is for; it stays so.")
@click.option("--route", "routes", multiple=True, help="A route it may use, besides the base; several times. [all]")
@limit_options
@why_option
@no_wait_option
@json_option
@home_options
def create(
    home: Home,
    name: str,
    role: Role,
    routes: tuple[str, ...],
    why: str | None,
    no_wait: bool,
    as_json: bool,
    **limits: int | None,
) -> None:
    """Make the key NAME and print its secret, once: only its digest is kept.

    From the first key on, gateways of this registry ask every request for one.
    """
    started = wait_clock()
    registry, _ = open_home(home, makes_registry=True)
    made = create_key(registry, name, role, routes=routes or None, limits=_limits(KeyLimits(), limits), why=why)
    if as_json:
        print_json({**_document(made.key), "secret": made.secret})
    else:
        click.echo(made.secret)
    note("this is the key's secret, shown this once: only its digest is kept")
    note(_said(registry, made.event.serial, f"key {name} created with the role {role}", started, wait=not no_wait))


@key.command(name="list")
@click.option("--revoked", is_flag=True, help="Revoked keys, too.")
@json_option
@home_options
def list_keys(home: Home, revoked: bool, as_json: bool) -> None:
    """List keys, never their secrets."""
    registry, _ = open_home(home)
    found = [one for one in keys_of(registry) if revoked or one.revoked_at is None]
    if as_json:
        print_json([_document(one) for one in found])
        return
    header = ("name", "id", "role", "routes", "requests/min", "tokens/min", "concurrent", "created", "revoked")
    print_table(header, [_row(one) for one in found])


@key.command(name="set")
@click.argument("name")
@click.option("--route", "routes", multiple=True, help="A route it may use, in place of those it could; several times.")
@click.option("--all-routes", is_flag=True, help="It may use all routes, also those to come.")
@limit_options
@why_option
@no_wait_option
@home_options
def set_key(
    home: Home,
    name: str,
    routes: tuple[str, ...],
    all_routes: bool,
    why: str | None,
    no_wait: bool,
    **limits: int | None,
) -> None:
    """Give the key NAME (or of this id) other routes or limits, at once. Its role stays: make another key for that."""
    if routes and all_routes:
        raise click.UsageError("give --route or --all-routes")
    if not (routes or all_routes or any(limit is not None for limit in limits.values())):
        raise click.UsageError("nothing to set: give routes or limits")
    started = wait_clock()
    registry, _ = open_home(home)

    def changed(before: ApiKey) -> ApiKey:
        allowed = None if all_routes else frozenset(routes) or before.routes
        return replace(before, routes=allowed, limits=_limits(before.limits, limits))

    change = change_key(registry, name, changed, why=why)
    click.echo(_said(registry, change.event.serial, f"key {change.key.name} changed", started, wait=not no_wait))


@key.command()
@click.argument("name")
@why_option
@no_wait_option
@home_options
def revoke(home: Home, name: str, why: str | None, no_wait: bool) -> None:
    """End the key NAME (or of this id) for good, at once. Requests that it has running end as they would."""
    started = wait_clock()
    registry, _ = open_home(home)
    change = revoke_key(registry, name, why=why)
    click.echo(_said(registry, change.event.serial, f"key {change.key.name} revoked", started, wait=not no_wait))


@key.command()
@click.argument("name", required=False)
@json_option
@home_options
def history(home: Home, name: str | None, as_json: bool) -> None:
    """Print what happened to all keys, or to those of this name or id: who, when, what, why."""
    registry, _ = open_home(home)
    events = key_events(registry, name)
    if as_json:
        print_json([event_row(event) for event in events])
        return
    rows = [(one.serial, one.time, one.kind, one.payload["name"], one.actor, one.why) for one in events]
    print_table(("serial", "time", "event", "key", "who", "why"), rows)


def _limits(before: KeyLimits, given: dict[str, int | None]) -> KeyLimits:
    return replace(before, **{name: limit or None for name, limit in given.items() if limit is not None})


def _said(registry: Registry, serial: int, what: str, started: float, *, wait: bool) -> str:
    """What was done, and where it is in force."""
    found = f": {wait_in_force(registry, serial, started=started)}" if wait else ""
    return f"{what} (serial {serial}){found}"


def _document(one: ApiKey) -> dict[str, object]:
    document = asdict(one)
    del document["digest"]
    return {**document, "routes": None if one.routes is None else sorted(one.routes)}


def _row(one: ApiKey) -> tuple[object, ...]:
    routes = "all" if one.routes is None else ", ".join(sorted(one.routes))
    limits = one.limits
    per_minute = (limits.requests_per_minute, limits.tokens_per_minute)
    return (one.name, one.id, one.role, routes, *per_minute, limits.max_concurrent, one.created_at, one.revoked_at)
