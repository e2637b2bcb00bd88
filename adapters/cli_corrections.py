"""`route correct`, `route corrections` and `route forget`: what operators say about texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import click

from .classifiers import live_classifier
from .command import NUMBER, PATH, open_home, wait_clock
from .convergence import wait_exemplars
from .corrections import Corrected, correct, corrections_in_force, remove_corrections
from .decisions import blank_texts, find_text, require_writable
from .errors import BadInput, RegistryUnavailable
from .exemplars import BASE_LABEL, exemplars_of
from .feedback import Choice, accept_feedback, reject_feedback, waiting_feedback
from .forget import Forgotten, forget_texts
from .home import Home, home_options
from .output import json_option, note, print_json, print_table
from .registry import Registry
from .rows import read_texts, text_digest

DIGEST_CHARACTERS = 12
MAX_SHOWN = 80
why_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option("--why", help="Why, for the history.")
no_wait_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--no-wait", is_flag=True, help="Do not wait until gateways follow."
)


@click.command(name="correct")
@click.argument("name")
@click.option("--text", "texts", multiple=True, help="A text that was routed wrong; may be given several times.")
@click.option("--file", type=PATH, help='Rows {"text": ...}.')
@click.option("--request-id", help="Take the text of this request from --decision-log.")
@click.option("--decision-log", type=PATH, help="As given to `serve` with --decision-log-text.")
@why_option
@no_wait_option
@home_options
def correct_texts(
    home: Home,
    name: str,
    texts: tuple[str, ...],
    file: Path | None,
    request_id: str | None,
    decision_log: Path | None,
    why: str | None,
    no_wait: bool,
) -> None:
    """Say that texts belong to the route NAME, or to no route (`base`). Acts at once; the next fit learns it."""
    if (request_id is None) != (decision_log is None):
        raise click.UsageError("--request-id and --decision-log go together")
    started = wait_clock()
    logged = [find_text(decision_log, request_id)] if decision_log and request_id is not None else []
    chosen = [*texts, *(read_texts(file) if file else []), *logged]
    if not chosen:
        raise BadInput("no text given", hint="use --text, --file or --request-id")
    registry, _ = open_home(home)
    _announce(registry, correct(registry, name, chosen, why=why), f"corrected to {name}", started, wait=not no_wait)


@click.group()
def corrections() -> None:
    """Corrections: those that programs proposed, and those in force."""


@corrections.command(name="list")
@click.option("--in-force", is_flag=True, help="Those that act, instead of those that wait.")
@click.option("--source", help="Only of this source: `key:NAME`, or what a program without a key calls itself.")
@json_option
@home_options
def list_corrections(home: Home, in_force: bool, source: str | None, as_json: bool) -> None:
    """Corrections that wait to be accepted or rejected, or those in force."""
    registry, _ = open_home(home)
    header: tuple[str, ...]
    rows: list[tuple[object, ...]]
    if in_force:
        acting = [one for one in corrections_in_force(registry) if source in (None, one.source)]
        documents = [asdict(one) for one in acting]
        header = ("text digest", "route", "text", "source", "time")
        rows = [
            (one.text_digest[:DIGEST_CHARACTERS], one.label, _cut(one.text), one.source, one.time) for one in acting
        ]
    else:
        waiting = waiting_feedback(registry, Choice(source=source))
        documents = [asdict(one) for one in waiting]
        header = ("id", "route", "text", "source", "time", "times")
        rows = [(one.id, one.label, _cut(one.text), one.source, one.time, one.times) for one in waiting]
        for name, count in Counter(one.source for one in waiting).most_common(10):
            note(f"{count} of {name}")
    if as_json:
        print_json([{"route": one.pop("label"), **one} for one in documents])
    else:
        print_table(header, rows)


def choice_options(command: Callable[..., None]) -> Callable[..., None]:
    """IDs, all of a source, or all."""
    command = click.option("--all", "everything", is_flag=True, help="All that wait, listed or not.")(command)
    command = click.option("--source", help="All of this source, listed or not.")(command)
    return click.argument("ids", nargs=-1, type=NUMBER, metavar="[ID]...")(command)


@corrections.command()
@choice_options
@why_option
@no_wait_option
@home_options
def accept(
    home: Home, ids: tuple[int, ...], source: str | None, everything: bool, why: str | None, no_wait: bool
) -> None:
    """Put proposed corrections in force."""
    started = wait_clock()
    registry, _ = open_home(home)
    done = accept_feedback(registry, _choice(ids, source, everything), why=why)
    _announce(registry, done, "accepted", started, wait=not no_wait)


@corrections.command()
@choice_options
@why_option
@home_options
def reject(home: Home, ids: tuple[int, ...], source: str | None, everything: bool, why: str | None) -> None:
    """Delete proposed corrections."""
    registry, _ = open_home(home)
    click.echo(f"{reject_feedback(registry, _choice(ids, source, everything), why=why)} rejected and deleted")


@corrections.command()
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
@why_option
@home_options
def remove(home: Home, digests: tuple[str, ...], why: str | None) -> None:
    """Take corrections in force back, by their text digest (four characters of it do). Their text is deleted."""
    registry, _ = open_home(home)
    click.echo(f"{remove_corrections(registry, digests, why=why)} corrections removed")


@click.command()
@click.argument("name")
@click.option("--decision-log", type=PATH, help="Blank the texts there too: as given to `serve`.")
@why_option
@home_options
def forget(home: Home, name: str, decision_log: Path | None, why: str | None) -> None:
    """Delete all texts given for NAME for good: examples, corrections, feedback. Its versions and history stay."""
    if decision_log is not None:
        require_writable(decision_log)  # afterwards nothing knows any more which texts to blank there
    registry, _ = open_home(home)
    done = forget_texts(registry, name, why=why)
    others = [f"{n} {what}" for n, what in ((done.corrections, "corrections"), (done.feedback, "waiting")) if n]
    said = [", ".join([f"{done.examples} examples of {name} deleted", *others])]
    if decision_log is not None:
        blanked = blank_texts(decision_log, lambda decision: _is_forgotten(decision, name, done))
        said.append(f"{blanked} texts blanked in the decision log")
    if done.unscrubbed is not None:
        raise RegistryUnavailable("; ".join([*said, done.unscrubbed.message]), hint=done.unscrubbed.hint)
    click.echo("\n".join(said))
    if decision_log is None:
        note(_what_logs_keep(name))
    live = live_classifier(registry)
    if live is not None and name in (known if isinstance(known := live.summary.get("routes"), list) else ()):
        note(f"classifier {live.number} was fitted with {name} and keeps words of its texts: fit again and promote")


def _what_logs_keep(name: str) -> str:
    if name == BASE_LABEL:
        return "no gateway blanks these texts in its decision log by itself; --decision-log does"
    return "running gateways blank texts that were routed to it in their decision logs; --decision-log does so now"


def _is_forgotten(decision: Mapping[str, object], name: str, done: Forgotten) -> bool:
    """Texts that were routed to the route, and those that were given for it, wherever they were routed."""
    return decision.get("route") == name or text_digest(str(decision["text"])) in done.digests


def _cut(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def _choice(ids: tuple[int, ...], source: str | None, everything: bool) -> Choice:
    if sum([bool(ids), source is not None, everything]) != 1:
        raise click.UsageError("give IDs, --source or --all")
    return Choice(ids, source)


def _announce(registry: Registry, done: Corrected, what: str, started: float, *, wait: bool) -> None:
    for label, count in sorted(done.lost.items()):
        note(f"{count} taken from {label}")
    known = f", {done.known} known already" if done.known else ""
    said = f"{done.added} {what}{known}"
    if done.event is None:
        click.echo(said)
    elif not wait:
        click.echo(f"{said} (serial {done.event.serial})")
    else:
        found = wait_exemplars(registry, done.event.serial, exemplars_of(registry).digest, started=started)
        click.echo(f"{said} (serial {done.event.serial}): {found}")
