"""`classifier eval` and `classifier decide`: a classifier on the rows of a file."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from adapters.classifier_evidence import NEGATIVE_LABELS
from adapters.command import PATH
from adapters.errors import BadInput
from adapters.home import Home, home_options
from adapters.output import json_option, note, print_json, print_table
from adapters.rows import Message, canonical_json, prompt_digest, read_labelled, read_prompts

from ..commands.encoder_flags import encoder_option
from .choice import choose_classifier, classifier_option
from .evidence import Filed, file_evidence


@click.command(name="eval")
@click.argument("file", type=PATH)
@classifier_option
@encoder_option
@click.option("--evidence", "as_evidence", is_flag=True, help="File the decisions as evidence for the promotion gate.")
@json_option
@home_options
def evaluate_file(home: Home, file: Path, named: str, encoder: str | None, as_evidence: bool, as_json: bool) -> None:
    """Score the classifier on FILE, rows {"text", "label"}; `base` and `oos` mean that no route is right.

    With --evidence the decisions are filed for `classifier promote`, and those of the live classifier beside them.
    Rows that the classifier was fitted on are no evidence and are refused.
    """
    from ..classify.evaluate import evaluate_scores

    if as_evidence and file.exists() and not file.is_file():
        raise BadInput(f"{file} cannot be read twice", hint="evidence names the rows by their file's digest: save them")
    chosen = choose_classifier(home, named, encoder)
    rows = read_labelled(file)
    unknown = sorted({row.label for row in rows} - NEGATIVE_LABELS - set(chosen.classifier.routes))
    if unknown:
        note(f"note: the classifier has no route {', '.join(unknown)}; these rows count as misses")
    scores = chosen.score([row.text for row in rows])
    measures = asdict(evaluate_scores(scores, [row.label for row in rows]))
    filed = file_evidence(home, chosen, file, rows, scores, encoder) if as_evidence else None
    if as_json:
        print_json({**measures, **({"evidence": asdict(filed)} if filed else {})})
        return
    print_measures(measures)
    if filed:
        _print_filed(filed)


def print_measures(measures: Mapping[str, object]) -> None:
    print_table(["measure", "value"], [[key, _rounded(value)] for key, value in measures.items()])


@click.command()
@click.argument("file", type=PATH)
@click.option("--out", type=PATH, required=True, help="Where the decisions go, one JSON object a line.")
@classifier_option
@encoder_option
@home_options
def decide(home: Home, file: Path, out: Path, named: str, encoder: str | None) -> None:
    """Write the decision for each row of FILE: row digest, route (null = base), score, classifier digest."""
    chosen = choose_classifier(home, named, encoder)
    prompts = {prompt_digest(prompt): prompt for prompt in read_prompts(file)}
    found = chosen.decide([user_turns(prompt) for prompt in prompts.values()])
    lines = [
        canonical_json(
            {
                "row": row,
                "route": None if scores.abstains else scores.route,
                "score": scores.score,
                "classifier": chosen.classifier.digest,
            }
        )
        for row, scores in zip(prompts, found, strict=True)
    ]
    _write_lines(out, lines)
    click.echo(f"{len(lines)} decisions written to {out.name}")


def user_turns(prompt: Sequence[Message]) -> list[str]:
    """User turns, newest first."""
    return [message.content for message in reversed(prompt) if message.role == "user"]


def _print_filed(filed: Filed) -> None:
    also = f", and for the live classifier {filed.live}" if filed.live is not None else ""
    click.echo(f"evidence {filed.digest[:16]} filed for classifier {filed.number}{also}")
    if filed.is_live:
        return
    if not filed.unmet:
        click.echo(f"it passes the promotion gate: `branchline classifier promote {filed.number}`")
    for unmet in filed.unmet:
        click.echo(f"the promotion gate would refuse it: {unmet}")


def _rounded(value: object) -> object:
    return f"{value:.4f}" if isinstance(value, float) else value


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    staged = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        staged.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        staged.replace(path)
    except OSError as error:
        raise BadInput(f"cannot write {path.name}: {error.strerror}", hint="check the folder") from error
    finally:
        staged.unlink(missing_ok=True)
