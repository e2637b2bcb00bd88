"""The `registry` group: the database itself. What is in it belongs to the other groups."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path

import click
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from .command import open_home
from .database import find_revision
from .errors import BadInput
from .home import Home, home_options
from .output import json_option, note, print_json, print_table
from .registry import Registry
from .registry_copy import copy_registry
from .schema import REVISION


@click.group()
def registry() -> None:
    """Look at the registry's database, copy it to another, upgrade it by hand."""


@registry.command()
@json_option
@home_options
def show(home: Home, as_json: bool) -> None:
    """Where the registry is, its revision and serial, and which gateways follow it."""
    opened, _ = open_home(home)
    found: dict[str, object] = {
        "url": _shown(home.registry_url),
        "revision": REVISION,
        "serial": opened.serial(),
        "routes": len(opened.routes()),
        "versions": len(opened.versions()),
        "events": dict(Counter(event.kind for event in opened.events())),
        "gateways": {row.gateway_id: row.serial for row in opened.gateways()},
    }
    if as_json:
        print_json(found)
    else:
        print_table(("field", "value"), list(found.items()))


@registry.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@json_option
def copy(source: str, target: str, as_json: bool) -> None:
    """Copy the registry FROM into the empty database TO: every event, version, text and key, or nothing at all.

    Each is a URL (sqlite:///FILE, postgresql://HOST/NAME) or the path of an SQLite file. Copied is what is there when
    it begins; files of the store are not copied.
    """
    taken = Registry.open(_url(source), create=False)
    try:
        given = Registry.open(_url(target))
        try:
            copied = copy_registry(taken, given)
        finally:
            given.close()
        moved_on = taken.serial() - copied.serial
    finally:
        taken.close()
    if as_json:
        print_json({**asdict(copied), "from": _shown(_url(source)), "to": _shown(_url(target)), "missed": moved_on})
    else:
        counts = ", ".join(f"{count} {name}" for name, count in copied.rows.items())
        click.echo(f"copied up to serial {copied.serial}: {counts}")
    if moved_on:
        note(f"{moved_on} events came while it was copied and are not in it: stop what writes, and copy again")
    note(
        f"artifacts are not copied ({copied.store_bytes / 1e6:.1f} MB of versions, and the classifiers): keep --store "
        "where it is, or copy the folder `store` of the home; then check with `branchline adapter verify`"
    )


@registry.command()
@home_options
def sql(home: Home) -> None:
    """Print the SQL that upgrades the registry, for an administrator to run; nothing where it is up to date.

    Commands and gateways upgrade an older registry themselves when they open it; this is for where they may not.
    """
    found = find_revision(home.registry_url)
    if found != REVISION:
        from .migrations import render_sql

        click.echo(render_sql(home.registry_url, found))


def _url(text: str) -> str:
    if "://" in text:
        try:
            make_url(text)
        except ArgumentError as error:
            raise BadInput("that is no database URL", hint="write sqlite:///FILE or postgresql://HOST/NAME") from error
        return text
    return URL.create("sqlite", database=str(Path(text).expanduser().resolve())).render_as_string()


def _shown(url: str) -> str:
    parsed = make_url(url)
    secret = [name for name in parsed.query if "password" in name]  # there it may stand, too
    return parsed.difference_update_query(secret).render_as_string(hide_password=True)
