"""`classifier fit`: from labelled rows, or from the registry's examples, to a published classifier or a folder."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from adapters.classifiers import promote_classifier, publish_classifier
from adapters.command import PATH, open_home
from adapters.errors import BadInput
from adapters.exemplars import exemplars_of
from adapters.home import Home, home_options
from adapters.output import json_option, print_json, print_table
from adapters.registry import Registry
from adapters.rows import LabelledText, read_labelled, read_texts

from .classify.artifact import save_classifier
from .classify.classifier import BASE, Classifier


@click.command()
@click.option("--examples", type=PATH, help='Rows {"text", "label"} [default: the examples of the registry\'s routes].')
@click.option("--base-examples", type=PATH, help='Rows {"text"} that no route should take.')
@click.option("--calibrate-on", type=PATH, help='Rows {"text", "label"} to calibrate on [default: held-out rows].')
@click.option("--coverage", default=0.99, show_default=True, help="Share of in-scope texts to keep.")
@click.option("--out", type=PATH, help="Write a folder and leave the registry alone.")
@click.option("--promote", is_flag=True, help="Make it the classifier in use.")
@json_option
@home_options
def fit(
    home: Home,
    examples: Path | None,
    base_examples: Path | None,
    calibrate_on: Path | None,
    coverage: float,
    out: Path | None,
    promote: bool,
    as_json: bool,
) -> None:
    """Fit a classifier and publish it, or write it to --out."""
    if out and promote:
        raise click.UsageError("--promote needs the registry, which --out leaves alone")
    from .classify.fit import fit_classifier

    rows = read_labelled(examples) if examples else registry_rows(open_home(home)[0])
    rows += [LabelledText(text, BASE) for text in (read_texts(base_examples) if base_examples else [])]
    calibration = read_labelled(calibrate_on) if calibrate_on else ()
    fitted = fit_classifier(rows, coverage=coverage, calibration=calibration)
    number = None
    if out:
        save_classifier(fitted, out)
    else:
        number = _publish(home, fitted, promote)
    summary = {"number": number, "digest": fitted.digest, "promoted": promote, **fitted.summary}
    if as_json:
        print_json(summary)
    else:
        name = f"classifier {number}" if number else "classifier"
        click.echo(f"{name} {fitted.digest[:16]}: {len(fitted.routes)} routes, {len(rows)} rows")
        print_table(["fitted", "value"], [[key, value] for key, value in summary.items() if _is_short(value)])


def registry_rows(registry: Registry) -> list[LabelledText]:
    """Examples of all routes and corrections in force. Raises `BadInput` where no route has any."""
    rows = [LabelledText(one.text, one.label) for one in exemplars_of(registry).rows]
    if all(row.label == BASE for row in rows):
        raise BadInput("no route has examples", hint="add some with `branchline route examples NAME add`")
    return rows


def _publish(home: Home, fitted: Classifier, promote: bool) -> int:
    registry, store = open_home(home)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "classifier"
        save_classifier(fitted, folder)
        version = publish_classifier(registry, store, folder, digest=fitted.digest, summary=fitted.summary)
    if promote and registry.classifier_state().live != version.number:
        promote_classifier(registry, version.number, why="classifier fit --promote")
    return version.number


def _is_short(value: object) -> bool:
    return not isinstance(value, dict | list)
