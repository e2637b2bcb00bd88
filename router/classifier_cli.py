"""The `classifier` group and `explain`: fit, judge and look into the classifier from the command line."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from adapters.classifiers import live_classifier, promote_classifier, rollback_classifier
from adapters.command import PATH, open_home
from adapters.errors import BadInput, NotFound
from adapters.home import Home, home_options
from adapters.output import json_option, note, print_json, print_table
from adapters.rows import Message, canonical_json, prompt_digest, read_labelled, read_prompts

from .classifier_fit_cli import fit
from .classify.classifier import Classifier
from .classify.loader import load_classifier

classifier_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--classifier", "folder", type=PATH, help="A classifier folder [default: the live one of the registry]."
)


@click.group()
def classifier() -> None:
    """Fit, evaluate, promote and roll back the classifier."""


classifier.add_command(fit)


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
        [
            v.number,
            "live" if v.number == live else "",
            v.digest[:16],
            v.published_at,
            v.summary.get("held_out_accuracy"),
        ]
        for v in versions
    ]
    print_table(["number", "stage", "digest", "published", "held-out accuracy"], cells)


@classifier.command()
@click.argument("number", type=int)
@click.option("--why", help="Kept in the history.")
@home_options
def promote(home: Home, number: int, why: str | None) -> None:
    """Make classifier NUMBER the one in use."""
    registry, _ = open_home(home)
    promote_classifier(registry, number, why=why)
    click.echo(f"classifier {number} is live")


@classifier.command()
@click.option("--why", help="Kept in the history.")
@home_options
def rollback(home: Home, why: str | None) -> None:
    """Go back to the classifier in use before."""
    registry, _ = open_home(home)
    event = rollback_classifier(registry, why=why)
    click.echo(f"classifier {event.number} is live")


@classifier.command(name="eval")
@click.argument("file", type=PATH)
@classifier_option
@json_option
@home_options
def evaluate_file(home: Home, file: Path, folder: Path | None, as_json: bool) -> None:
    """Score the classifier on FILE, rows {"text", "label"}; `base` and `oos` mean that no route is right."""
    from .classify.calibration import NEGATIVES
    from .classify.evaluate import evaluate

    chosen = choose_classifier(home, folder)
    rows = read_labelled(file)
    unknown = sorted({row.label for row in rows} - NEGATIVES - set(chosen.routes))
    if unknown:
        note(f"note: the classifier has no route {', '.join(unknown)}; these rows count as misses")
    found = asdict(evaluate(chosen, rows))
    if as_json:
        print_json(found)
    else:
        print_table(["measure", "value"], [[key, value] for key, value in found.items()])


@classifier.command()
@click.argument("file", type=PATH)
@click.option("--out", type=PATH, required=True, help="Where the decisions go, one JSON object a line.")
@classifier_option
@home_options
def decide(home: Home, file: Path, out: Path, folder: Path | None) -> None:
    """Write the decision for each row of FILE: row digest, route (null = base), score, classifier digest."""
    chosen = choose_classifier(home, folder)
    lines: dict[str, str] = {}
    for prompt in read_prompts(file):
        scores = chosen.decide_text(_user_turns(prompt))
        row = prompt_digest(prompt)
        route = None if scores.abstains else scores.route
        decision = {"row": row, "route": route, "score": scores.score, "classifier": chosen.digest}
        lines[row] = canonical_json(decision)
    _write_lines(out, list(lines.values()))
    click.echo(f"{len(lines)} decisions written to {out.name}")


@click.command()
@click.argument("text")
@classifier_option
@json_option
@home_options
def explain(home: Home, text: str, folder: Path | None, as_json: bool) -> None:
    """Say where TEXT would be routed, and why."""
    chosen = choose_classifier(home, folder)
    found = chosen.explain(text)
    scores = found.scores
    if as_json:
        route = None if scores.abstains else scores.route
        print_json({"route": route, "classifier": chosen.digest, **asdict(found)})
        return
    click.echo(found.reason)
    shares = list(found.probabilities.items())[:5]
    print_table(["label", "probability"], [[label, f"{share:.4f}"] for label, share in shares])
    if found.terms:
        print_table(["term", f"for {scores.route}"], [[repr(term), f"{gain:.4f}"] for term, gain in found.terms])


def choose_classifier(home: Home, folder: Path | None) -> Classifier:
    """The classifier in `folder`, else the live one. Raises `NotFound` before the first promotion."""
    if folder:
        return load_classifier(folder)
    registry, store = open_home(home)
    live = live_classifier(registry)
    if live is None:
        raise NotFound("no classifier is live", hint="run `branchline classifier fit --promote`")
    return load_classifier(store.classifier_folder(live.digest), digest=live.digest)


def _user_turns(prompt: Sequence[Message]) -> list[str]:
    """User turns, newest first."""
    return [message.content for message in reversed(prompt) if message.role == "user"]


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    staged = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        staged.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        raise BadInput(f"cannot write {path.name}: {error.strerror}", hint="check the folder") from error
    finally:
        staged.unlink(missing_ok=True)
