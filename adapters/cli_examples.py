"""`route examples`: a route's example utterances."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from . import examples as exemplar_texts
from .command import PATH, open_home
from .errors import BadInput
from .example_checks import DEFAULT_MAX_LOSS, check_examples
from .home import Home, home_options
from .output import json_option, one_line, print_json
from .rows import read_texts


def collision_options(command: Callable[..., None]) -> Callable[..., None]:
    """Options of every command that adds examples."""
    command = click.option(
        "--force", "forced", metavar="WHY", help="Add the examples although another route loses; stays in the history."
    )(command)
    return click.option(
        "--max-loss", default=DEFAULT_MAX_LOSS, show_default=True, help="Recall that another route may lose to them."
    )(command)


@click.group()
def examples() -> None:
    """A route's example utterances."""


@examples.command(name="add")
@click.argument("name")
@click.option("--file", type=PATH, help='Rows {"text": ...}.')
@click.option("--text", "texts", multiple=True, help="One example; may be given several times.")
@collision_options
@home_options
def add_examples(
    home: Home, name: str, file: Path | None, texts: tuple[str, ...], max_loss: float, forced: str | None
) -> None:
    """Add examples to NAME. They act at once, from memory; the next `classifier fit` learns them."""
    chosen = [*texts, *(read_texts(file) if file else [])]
    if not chosen:
        raise BadInput("no examples given", hint="use --text or --file")
    exemplar_texts.require_texts(chosen)
    registry, _ = open_home(home)
    check_examples(registry, registry.route(name).name, chosen, max_loss=max_loss, forced=forced)
    source = f"file {file.name}" if file else "operator"
    change = exemplar_texts.add_examples(registry, name, chosen, source=source, why=forced)
    click.echo(f"{change.event.payload['added']} examples added to {name}")


@examples.command(name="list")
@click.argument("name")
@json_option
@home_options
def list_examples(home: Home, name: str, as_json: bool) -> None:
    """Print the examples of NAME, one a line, control characters spelled out."""
    registry, _ = open_home(home)
    texts = exemplar_texts.examples_of(registry, name)
    if as_json:
        print_json([{"text": text} for text in texts])
    else:
        for text in texts:
            click.echo(one_line(text))


@examples.command(name="remove")
@click.argument("name")
@click.option("--text", "texts", multiple=True, required=True, help="The example's exact text; may be repeated.")
@home_options
def remove_examples(home: Home, name: str, texts: tuple[str, ...]) -> None:
    """Delete examples of NAME for good."""
    registry, _ = open_home(home)
    change = exemplar_texts.remove_examples(registry, name, texts)
    click.echo(f"{change.event.payload['removed']} examples removed from {name}")
