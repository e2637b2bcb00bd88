"""The `route` group: what is wanted. Traffic commands wait until gateways say it is in force."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from . import examples as exemplar_texts
from .cli_corrections import correct_texts, corrections, forget
from .cli_examples import collision_options, examples
from .command import PATH, announce, find_version, open_home, wait_clock
from .convergence import is_alive
from .errors import InvalidName
from .example_checks import check_examples
from .exemplars import BASE_LABEL, base_events
from .fold import route_to_json
from .home import Home, home_options
from .output import json_option, note, print_json, print_table
from .policy import Policy, parse_assignments
from .promotion import promote as promote_through_gate
from .records import event_row
from .rows import read_texts
from .types import AdapterRef, RouteState, parse_route_name


@click.group()
def route() -> None:
    """Create routes; promote, roll back, disable and enable them."""


route.add_command(correct_texts)
route.add_command(corrections)
route.add_command(examples)
route.add_command(forget)


def traffic_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options that every command which moves traffic takes."""
    command = click.option("--no-wait", is_flag=True, help="Do not wait until gateways follow.")(command)
    return click.option("--expect-revision", type=int, help="Refuse where the route is no longer at this revision.")(
        command
    )


@route.command()
@click.argument("name")
@click.option("--examples", type=PATH, help='Example utterances, rows {"text": ...}.')
@click.option("--description", default="", help="What the route is for.")
@collision_options
@home_options
def create(home: Home, name: str, examples: Path | None, description: str, max_loss: float, forced: str | None) -> None:
    """Create the route NAME, which has no versions yet, unless its examples would take those of another route."""
    texts = read_texts(examples) if examples else []
    exemplar_texts.require_texts(texts)
    registry, _ = open_home(home, makes_registry=True)
    route_name = parse_route_name(name)
    if texts:
        check_examples(registry, route_name, texts, max_loss=max_loss, forced=forced)
    registry.create_route(name, description=description)
    if texts:
        source = f"file {examples.name if examples else ''}"
        exemplar_texts.add_examples(registry, name, texts, source=source, why=forced)
    click.echo(f"route {name} created with {len(texts)} examples")


@route.command(name="set")
@click.argument("name")
@click.argument("assignments", nargs=-1, required=True, metavar="KEY=VALUE...")
@click.option("--expect-revision", type=int, help="Refuse where the route is no longer at this revision.")
@home_options
def set_policy(home: Home, name: str, assignments: tuple[str, ...], expect_revision: int | None) -> None:
    """Set policy keys of NAME; `KEY=` goes back to the default. `description=TEXT` describes the route."""
    changes = parse_assignments(assignments)
    described = "description" in changes
    description = str(changes.pop("description") or "") if described else None
    registry, _ = open_home(home)
    change = registry.change_route(
        name, policy=changes or None, description=description, expected_revision=expect_revision
    )
    click.echo(f"route {name}: {Policy.of(change.state.policy).to_json()}")


@route.command()
@click.argument("version")
@click.option("--force", "forced", metavar="WHY", help="Promote although the gate refuses; stays in the history.")
@traffic_options
@home_options
def promote(home: Home, version: str, forced: str | None, no_wait: bool, expect_revision: int | None) -> None:
    """Make VERSION (ROUTE@N) the live one, if its evidence passes the promotion gate."""
    started = wait_clock()
    if forced is not None and not forced.strip():
        raise InvalidName("--force needs a reason", hint='write --force "why"')
    registry, store = open_home(home)
    found = find_version(registry, version)
    done = promote_through_gate(
        registry, store, found.route, found.number, forced=forced, expected_revision=expect_revision
    )
    for unmet in done.verdict.unmet:
        note(f"forced over: {unmet}")
    announce(registry, done.change, f"{found.ref} promoted", started, wait=not no_wait)


@route.command()
@click.argument("name")
@click.option("--to", type=int, help="A version number that was live before.")
@click.option("--why", help="Why, for the history.")
@traffic_options
@home_options
def rollback(
    home: Home, name: str, to: int | None, why: str | None, no_wait: bool, expect_revision: int | None
) -> None:
    """Bring back the version of NAME that was live before."""
    started = wait_clock()
    registry, _ = open_home(home)
    change = registry.rollback(name, to=to, why=why, expected_revision=expect_revision)
    back = AdapterRef(change.state.name, change.state.live)
    announce(registry, change, f"route {name} rolled back to {back}", started, wait=not no_wait)


@route.command()
@click.argument("name")
@click.option("--why", help="Why, for the history.")
@traffic_options
@home_options
def disable(home: Home, name: str, why: str | None, no_wait: bool, expect_revision: int | None) -> None:
    """Send the traffic of NAME to the base, at once."""
    started = wait_clock()
    registry, _ = open_home(home)
    change = registry.disable(name, why=why, expected_revision=expect_revision)
    announce(registry, change, f"route {name} disabled", started, wait=not no_wait)


@route.command()
@click.argument("name")
@click.option("--why", help="Why, for the history.")
@traffic_options
@home_options
def enable(home: Home, name: str, why: str | None, no_wait: bool, expect_revision: int | None) -> None:
    """Give the traffic of NAME back to its live version."""
    started = wait_clock()
    registry, _ = open_home(home)
    change = registry.enable(name, why=why, expected_revision=expect_revision)
    announce(registry, change, f"route {name} enabled", started, wait=not no_wait)


@route.command(name="list")
@json_option
@home_options
def list_routes(home: Home, as_json: bool) -> None:
    """List routes."""
    registry, _ = open_home(home)
    states = registry.routes()
    if as_json:
        print_json([state_json(state) for state in states])
        return
    rows = [
        (
            one.name,
            "enabled" if one.enabled else "disabled",
            _version(one, one.live),
            _version(one, one.previous),
            one.latest,
            one.revision,
            one.description,
        )
        for one in states
    ]
    print_table(("route", "traffic", "live", "previous", "versions", "revision", "description"), rows)


@route.command()
@click.argument("name")
@json_option
@home_options
def show(home: Home, name: str, as_json: bool) -> None:
    """Show NAME: what is wanted, and what each gateway has in force."""
    registry, _ = open_home(home)
    state = registry.route(name)
    rows = registry.gateways()
    gateways = {row.gateway_id: row.routes.get(name) for row in rows}
    alive = [row for row in rows if is_alive(row)]
    unverified = [row.gateway_id for row in alive if row.base_unverified]
    document = {
        **state_json(state),
        "policy": Policy.of(state.policy).to_json(),
        "gateways": {
            gateway: None
            if one is None
            else {"in_force": one.engine_name, "serial": one.serial, "problem": one.problem}
            for gateway, one in gateways.items()
        },
        "base_unverified": unverified,
    }
    if as_json:
        print_json(document)
        return
    print_table(("field", "value"), list(document.items()))
    if unverified:
        click.echo(f"base unverified on {len(unverified)} gateway{'s' if len(unverified) > 1 else ''}")


@route.command()
@click.argument("name")
@json_option
@home_options
def history(home: Home, name: str, as_json: bool) -> None:
    """Print every event of NAME (or of `base`, its corrections): who, when, what, why."""
    registry, _ = open_home(home)
    if name == BASE_LABEL:
        events = base_events(registry)
    else:
        registry.route(name)
        events = registry.events(route=name)
    if as_json:
        print_json([event_row(event) for event in events])
        return
    rows = [(one.serial, one.time, one.kind, one.number, one.actor, one.why) for one in events]
    print_table(("serial", "time", "event", "version", "who", "why"), rows)


def state_json(state: RouteState) -> dict[str, object]:
    return {**route_to_json(state), "live": state.live, "previous": state.previous}


def _version(state: RouteState, number: int | None) -> str | None:
    return None if number is None else str(AdapterRef(state.name, number))
