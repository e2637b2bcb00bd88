"""The `monitor` command: its options, and what it prints."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click
import httpx

from adapters.command import PATH, open_home
from adapters.home import Home, home_options
from adapters.journal import Journal
from adapters.output import json_option, note, print_table
from adapters.rows import sha256_file, sha256_json

from ..metrics import TextMetric
from ..terminal import Terminal
from .live import Gateway
from .reference import FIRST, Questions, as_routed, read_questions
from .run import Monitor, Settings
from .sequential_test import Spending
from .state import StateFile, Watch
from .verdict import Plan, parse_interval

POINT = 0.01


def _interval(context: click.Context, parameter: click.Parameter, value: str) -> float:
    try:
        return parse_interval(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _address(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise click.BadParameter(str(error)) from error
    if url.scheme not in ("http", "https") or not url.host or url.userinfo:
        raise click.BadParameter("expected http://HOST:PORT, without user or password")
    return value


@click.command()
@click.argument("route")
@click.option("--url", required=True, callback=_address, help="The gateway, http://HOST:PORT.")
@click.option("--target", type=PATH, required=True, help="Rows that the route is for.")
@click.option("--guardrail", "guardrails", type=PATH, multiple=True, help="Rows that must not get worse; repeatable.")
@click.option("--routed", is_flag=True, help="Ask guardrails a second time as `auto`: what users get.")
@click.option(
    "--reference",
    metavar="ROUTE@N|FILE|first",
    help="What to compare with: a version's evidence, an evidence file, or the first check [the live version's own].",
)
@click.option(
    "--metric", type=click.Choice(get_args(TextMetric)), default="exact_match", help="With --reference first."
)
@click.option("--every", callback=_interval, default="1h", show_default=True, help="Time between looks: 90s, 15m, 1h.")
@click.option("--once", is_flag=True, help="Look once, now, and count it among the planned looks.")
@click.option("--checks", type=click.IntRange(1, 10_000), default=24, show_default=True, help="Looks planned.")
@click.option(
    "--alpha",
    type=click.FloatRange(0, 0.5, min_open=True),
    default=0.05,
    show_default=True,
    help="Rate of false alarms over all looks and sets.",
)
@click.option(
    "--spending",
    type=click.Choice(get_args(Spending)),
    default="pocock",
    show_default=True,
    help="Who gets how much α.",
)
@click.option("--warning", default=2.0, show_default=True, help="Points lost that are a warning.")
@click.option("--critical", default=5.0, show_default=True, help="Points lost that are critical.")
@click.option("--errors", default=5.0, show_default=True, help="Per cent of requests failing that is a warning.")
@click.option("--rollback", is_flag=True, help="Where it is critical, roll the route back, or disable it.")
@click.option("--restart", is_flag=True, help="Forget earlier looks at the live version.")
@click.option("--max-tokens", type=click.IntRange(1), help="Tokens of an answer [twice the longest wanted].")
@click.option("--concurrency", type=click.IntRange(1, 256), default=4, show_default=True, help="Requests at a time.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=60.0, show_default=True, help="Seconds.")
@json_option
@home_options
def monitor(home: Home, route: str, target: Path, guardrails: tuple[Path, ...], **options: Any) -> None:
    """Watch the live version of ROUTE through its gateway, and say when it has become worse.

    Asks the same rows at every look and compares item by item with the reference. The looks are remembered in the
    home; a new live version begins anew. Exit code 1 where a look is critical, with or without --rollback. The key
    is read from BRANCHLINE_API_KEY.
    """
    plan = _plan(options)
    registry, store = open_home(home)
    route = registry.route(route).name
    sets = [read_questions(target, "target"), *(read_questions(one, "guardrail") for one in guardrails)]
    _require_distinct(sets)
    if options["routed"]:
        if not guardrails:
            raise click.UsageError("--routed asks guardrails: give at least one --guardrail")
        sets += [as_routed(one) for one in sets[1:]]
    terminal = Terminal()

    def emit(event: dict[str, object]) -> None:
        terminal.close()
        print_event(event, as_json=options["as_json"])

    states = _state_file(home, route, sets, plan, options)
    settings = Settings(
        route,
        sets,
        plan,
        options["reference"],
        options["metric"],
        options["max_tokens"],
        roll_back=options["rollback"],
    )
    gateway = Gateway(options["url"], os.environ.get("BRANCHLINE_API_KEY"), options["timeout"], options["concurrency"])
    watcher = Monitor(registry, store, gateway, states, settings, emit, terminal.advance)
    with states.locked():
        if options["restart"]:
            _forget(registry, states, route)
        try:
            watcher.run(None if options["once"] else options["every"])
        finally:
            terminal.close()


def print_event(event: Mapping[str, Any], *, as_json: bool) -> None:
    """One line of JSON, or a look as a table and everything else as a line of news."""
    if as_json:
        click.echo(json.dumps(event, ensure_ascii=False))
        return
    if event["event"] != "look":
        said = {key: value for key, value in event.items() if key != "event"}
        details = (str(value) if key == "in_force" else f"{key} {value}" for key, value in said.items())
        note(f"{str(event['event']).replace('_', ' ')}: {', '.join(details)}")
        return
    severity = event["severity"] or "fine"
    click.echo(f"{event['version']}, look {event['look']} of {event['looks']}: {severity}")
    header = (
        "set",
        "metric",
        "items",
        "reference",
        "live",
        "points",
        "worse",
        "better",
        "p",
        "held to",
        "other",
        "failed",
    )
    print_table((*header, ""), [_row(one) for one in event["sets"]])


def _row(found: Mapping[str, Any]) -> tuple[object, ...]:
    drop = found["drop"]
    return (
        found["name"],
        found["metric"],
        drop["pairs"],
        f"{found['reference']:.3f}",
        f"{found['live']:.3f}",
        f"{0 - 100 * drop['size']:+.1f}",
        drop["worse"],
        drop["better"],
        f"{drop['p']:.2g}",
        f"{found['level']:.2g}",
        sum(found["others"].values()),
        sum(found["errors"].values()),
        found["severity"] or ("requests fail" if found["failing"] else ""),
    )


def _plan(options: Mapping[str, Any]) -> Plan:
    warning, critical, errors = (POINT * options[name] for name in ("warning", "critical", "errors"))
    if not 0 < warning <= critical <= 1:
        raise click.UsageError("--warning and --critical: expected 0 < warning ≤ critical ≤ 100 points")
    return Plan(options["checks"], options["alpha"], options["spending"], warning, critical, errors)


def _require_distinct(sets: Sequence[Questions]) -> None:
    if len({one.file_digest for one in sets}) != len(sets):
        raise click.UsageError("--target and --guardrail: the same rows were given twice")


def _state_file(home: Home, route: str, sets: Sequence[Questions], plan: Plan, options: Mapping[str, Any]) -> StateFile:
    """The file of this plan: what is asked and what decides, but not the gateway or the clock."""
    reference = options["reference"]
    if reference is not None and Path(reference).is_file():
        reference = sha256_file(Path(reference))
    described: dict[str, object] = {
        **asdict(plan),
        "sets": [[one.kind, one.key] for one in sets],
        "reference": reference or "live",
        "metric": options["metric"] if reference == FIRST else None,
        "max_tokens": options["max_tokens"],
    }
    name = f"{route}-{sha256_json(described)[:16]}.json"
    return StateFile(home.folder / "monitor" / name, route, described)


def _forget(registry: Journal, states: StateFile, route: str) -> None:
    state = registry.route(route)
    if state.live is not None:
        states.write(registry.version(route, state.live).engine_name, Watch())
