"""What commands print: JSON where asked for, aligned columns where not. Results go to stdout, all else to stderr."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

import click

MAX_SHOWN = 70

json_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON."
)


def print_json(value: object) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as their widest cell; nothing but the header's absence tells an empty table."""
    cells = [[one_line(str(cell)) if cell is not None else "-" for cell in row] for row in rows]
    widths = [max(len(line[column]) for line in [list(header), *cells]) for column in range(len(header))]
    for line in [list(header), *cells]:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def one_line(text: str) -> str:
    """`text` with line ends and terminal codes spelled out: foreign text can neither forge a line nor hide one."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def shortened(text: str) -> str:
    """The beginning of a long `text`, as a cell of a table holds it."""
    return text if len(text) <= MAX_SHOWN else f"{text[: MAX_SHOWN - 1]}…"


def note(text: str) -> None:
    """A line for the person at the terminal."""
    click.echo(one_line(text), err=True)
