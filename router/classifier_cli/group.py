"""The `classifier` group: what is published, what is live, and how that changes."""

from __future__ import annotations

from dataclasses import asdict

import click

from adapters.classifier_gate import ClassifierPolicy
from adapters.classifier_promotion import promote_through_gate
from adapters.classifiers import rollback_classifier
from adapters.command import NUMBER, SHARE, open_home
from adapters.errors import InvalidName
from adapters.home import Home, home_options
from adapters.output import json_option, print_json, print_table
from adapters.records import event_row
from adapters.types import ClassifierVersion

from .diff import diff
from .evaluate import decide, evaluate_file
from .explain import explain
from .fit import fit
from .publishing import print_promotion

__all__ = ["classifier", "explain"]
_DEFAULT = ClassifierPolicy()


@click.group()
def classifier() -> None:
    """Fit, evaluate, compare, promote and roll back the classifier."""


for command in (decide, diff, evaluate_file, fit):
    classifier.add_command(command)


@classifier.command(name="list")
@json_option
@home_options
def list_classifiers(home: Home, as_json: bool) -> None:
    """Published classifiers; the live one is marked."""
    registry, _ = open_home(home)
    live = registry.classifier_state().live
    versions = registry.classifiers()
    if as_json:
        print_json([{**asdict(version), "live": version.number == live} for version in versions])
        return
    cells = [
        [v.number, "live" if v.number == live else "", v.digest[:16], v.published_at, _share(v, "held_out_accuracy")]
        for v in versions
    ]
    print_table(["number", "stage", "digest", "published", "held-out accuracy"], cells)


@classifier.command()
@json_option
@home_options
def history(home: Home, as_json: bool) -> None:
    """Print every event of the classifier: who, when, what, why."""
    registry, _ = open_home(home)
    events = [event for event in registry.events() if event.kind.startswith("classifier_")]
    if as_json:
        print_json([event_row(event) for event in events])
        return
    rows = [(one.serial, one.time, one.kind, one.number, one.actor, one.why) for one in events]
    print_table(("serial", "time", "event", "classifier", "who", "why"), rows)


@classifier.command()
@click.argument("number", type=NUMBER)
@click.option("--force", "forced", metavar="WHY", help="Promote although the gate refuses; stays in the history.")
@click.option("--why", help="Kept in the history.")
@click.option(
    "--min-items",
    type=click.IntRange(1),
    default=_DEFAULT.min_items,
    show_default=True,
    help="Items that both were judged on.",
)
@click.option(
    "--max-loss",
    type=SHARE,
    default=_DEFAULT.max_loss,
    show_default=True,
    help="Accuracy that may be lost.",
)
@click.option(
    "--max-base-loss",
    type=SHARE,
    default=_DEFAULT.max_base_loss,
    show_default=True,
    help="Base recall that may be lost.",
)
@click.option(
    "--max-route-loss",
    type=SHARE,
    default=_DEFAULT.max_route_loss,
    show_default=True,
    help=f"Recall that a route with {_DEFAULT.route_items} items or more may lose beyond chance.",
)
@json_option
@home_options
def promote(
    home: Home,
    number: int,
    forced: str | None,
    why: str | None,
    min_items: int,
    max_loss: float,
    max_base_loss: float,
    max_route_loss: float,
    as_json: bool,
) -> None:
    """Make classifier NUMBER the one in use, if its evidence passes the promotion gate.

    It is compared with the live classifier on the same items: the bounds of the differences in accuracy and in base
    recall (paired, one-sided, 95 %) may not fall below minus the allowed loss. The first needs no evidence.
    """
    if forced is not None and not forced.strip():
        raise InvalidName("--force needs a reason", hint='write --force "why"')
    policy = ClassifierPolicy(min_items, max_loss, max_base_loss, max_route_loss)
    registry, store = open_home(home)
    done = promote_through_gate(registry, store, number, policy=policy, forced=forced, why=why)
    if as_json:
        print_json({**event_row(done.event), "replaced": done.replaced})
        return
    print_promotion(done)


@classifier.command()
@click.option("--why", help="Kept in the history.")
@home_options
def rollback(home: Home, why: str | None) -> None:
    """Go back to the classifier in use before."""
    registry, _ = open_home(home)
    event = rollback_classifier(registry, why=why)
    click.echo(f"classifier {event.number} is live")


def _share(version: ClassifierVersion, key: str) -> str | None:
    found = version.summary.get(key)
    return f"{found:.4f}" if isinstance(found, float) else None
