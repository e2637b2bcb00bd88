"""`classifier fit`: from labelled rows, or from the registry's examples, to a published classifier or a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapters.command import PATH, open_home
from adapters.errors import BadInput
from adapters.exemplars import exemplars_of
from adapters.home import Home, home_options
from adapters.output import json_option, print_json, print_table
from adapters.registry import Registry
from adapters.rows import LabelledText, read_labelled, read_texts

from ..classify.artifact import save_classifier
from ..classify.classifier import BASE
from ..classify.encoding import Precision
from ..commands.encoder_flags import encoder_option, precision_option
from .collisions import check_fit
from .fitting import Chosen, fit_rows
from .publishing import print_promotion, promote_fitted, publish_fitted

if TYPE_CHECKING:
    from ..classify.fit import HeadName


@click.command()
@click.option("--examples", type=PATH, help='Rows {"text", "label"} [default: the examples of the registry\'s routes].')
@click.option("--base-examples", type=PATH, help='Rows {"text"} that no route should take.')
@click.option(
    "--general-prompts/--no-general-prompts",
    default=True,
    show_default=True,
    help="Without base examples, learn what is no route's from prompts that come with Branchline.",
)
@click.option("--calibrate-on", type=PATH, help='Rows {"text", "label"} to calibrate on [default: held-out rows].')
@click.option("--coverage", default=0.99, show_default=True, help="Share of in-scope texts to keep.")
@encoder_option
@precision_option("--precision")
@click.option("--finetune", is_flag=True, help="Tune a copy of the encoder on the rows first: minutes, and torch.")
@click.option("--student", type=click.IntRange(1), metavar="LAYERS", help="Distil the encoder into one so deep.")
@click.option(
    "--head",
    type=click.Choice(["logistic", "centroids", "auto"]),
    default="auto",
    show_default=True,
    help="Logistic regression, or cheaper class means; auto: those for more than 500 labels.",
)
@click.option("--out", type=PATH, help="Write a folder and leave the registry alone.")
@click.option("--promote", is_flag=True, help="Make it the classifier in use, if it passes the promotion gate.")
@click.option("--force", "forced", metavar="WHY", help="Promote although the gate refuses; stays in the history.")
@json_option
@home_options
def fit(
    home: Home,
    examples: Path | None,
    base_examples: Path | None,
    general_prompts: bool,
    calibrate_on: Path | None,
    coverage: float,
    encoder: str | None,
    precision: Precision,
    finetune: bool,
    student: int | None,
    head: HeadName,
    out: Path | None,
    promote: bool,
    forced: str | None,
    as_json: bool,
) -> None:
    """Fit a classifier and publish it with its held-out decisions as evidence, or write it to --out."""
    if out and promote:
        raise click.UsageError("--promote needs the registry, which --out leaves alone")
    if forced is not None and not (promote and forced.strip()):
        raise click.UsageError("--force needs a reason, and --promote")
    if (finetune or student) and not encoder:
        raise click.UsageError("--finetune and --student need --encoder, which they start from")
    chosen = Chosen(encoder, precision, finetune, student, coverage, head, general_prompts)
    rows = read_labelled(examples) if examples else registry_rows(open_home(home)[0])
    rows += [LabelledText(text, BASE) for text in (read_texts(base_examples) if base_examples else [])]
    calibration = read_labelled(calibrate_on) if calibrate_on else ()
    collisions = None if out else check_fit(open_home(home)[0], rows, forced=forced, promote=promote)
    found = fit_rows(home, rows, calibration, chosen)
    fitted, number = found.classifier, None
    if out:
        save_classifier(fitted, out)
    else:
        number = publish_fitted(home, found)
    done = promote_fitted(home, number, forced) if promote and number is not None else None
    summary = {
        "number": number,
        "digest": fitted.digest,
        "promoted": promote,
        "collisions": collisions,
        **fitted.summary,
    }
    if as_json:
        print_json(summary)
    else:
        name = f"classifier {number}" if number else "classifier"
        click.echo(f"{name} {fitted.digest[:16]}: {len(fitted.routes)} routes, {len(rows)} rows")
        print_table(["fitted", "value"], [[key, value] for key, value in summary.items() if _is_short(value)])
        if done:
            print_promotion(done)


def registry_rows(registry: Registry) -> list[LabelledText]:
    """Examples of all routes and corrections in force. Raises `BadInput` where no route has any."""
    rows = [LabelledText(one.text, one.label) for one in exemplars_of(registry).rows]
    if all(row.label == BASE for row in rows):
        raise BadInput("no route has examples", hint="add some with `branchline route examples NAME add`")
    return rows


def _is_short(value: object) -> bool:
    return not isinstance(value, dict | list)
