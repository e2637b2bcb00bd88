"""`classifier diff`: what would change for a file of texts if another classifier decided."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from adapters.command import PATH, open_home
from adapters.decisions import day_files, read_logged
from adapters.errors import BadInput
from adapters.exemplars import Exemplars, exemplars_of
from adapters.home import Home, home_options
from adapters.output import json_option, note, print_json, print_table, shortened
from adapters.rows import Asked, read_asked

from ..classify.differences import Agreement, Differences, Judged, Move, find_differences
from ..commands.encoder_flags import encoder_option
from .choice import choose_classifier, is_folder
from .evaluate import user_turns


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@click.argument("file", type=PATH)
@encoder_option
@click.option("--examples", type=click.IntRange(0), default=3, show_default=True, help="Texts to show of each move.")
@json_option
@home_options
def diff(home: Home, before: str, after: str, file: Path, encoder: str | None, examples: int, as_json: bool) -> None:
    """Show what would change on FILE, and for which route, if classifier B decided and not A.

    A and B are numbers, folders or `live`. Both decide as in a gateway, beside the exemplars in force; two folders
    decide alone. FILE holds rows of any kind, with "label" or without, or names a decision log that was kept with
    text, all its days.
    """
    rows, left_out = read_logged(file) if _is_log(file) else read_asked(file)
    if left_out:
        note(f"note: {left_out} rows of {file.name} hold no text and are left out")
    if not rows:
        raise BadInput(f"{file.name} holds no texts", hint='give rows {"text"}, or a decision log kept with text')
    turns = [user_turns(row.prompt) for row in rows]
    alone = is_folder(before) and is_folder(after)
    exemplars = Exemplars(None, ()) if alone else exemplars_of(open_home(home)[0])
    one, other = (choose_classifier(home, named, encoder).beside(exemplars.rows) for named in (before, after))
    ends = [["base" if s.abstains else s.route for s in chosen.decide(turns)] for chosen in (one, other)]
    found = find_differences([Judged(a, b, row.label) for a, b, row in zip(*ends, rows, strict=True)])
    if as_json:
        digests = {
            "before": one.classifier.digest,
            "after": other.classifier.digest,
            "exemplars": exemplars.digest,
        }
        print_json({**digests, **_document(found, rows, examples)})
        return
    click.echo(f"{found.moved} of {found.rows} texts go elsewhere with classifier {other.name} than with {one.name}")
    _print(found, rows, examples)


def _is_log(file: Path) -> bool:
    """A log that once kept no texts has its own file still, beside those of its days."""
    if not file.exists():
        return True
    try:
        return bool(day_files(file))
    except OSError:
        return False


def _document(found: Differences, rows: list[Asked], examples: int) -> dict[str, object]:
    moves = [
        {
            "before": move.before,
            "after": move.after,
            "texts": len(move.places),
            "fixed": move.fixed,
            "broken": move.broken,
            "examples": [_text(rows[at]) for at in move.places[:examples]],
        }
        for move in found.moves
    ]
    return {**asdict(found), "moves": moves}


def _print(found: Differences, rows: list[Asked], examples: int) -> None:
    is_labelled = found.labelled is not None
    if found.moves:
        click.echo()
        header = ["from", "to", "texts", *(["fixed", "broken"] if is_labelled else []), "for example"]
        print_table(header, [line for move in found.moves for line in _move_lines(move, rows, examples, is_labelled)])
        click.echo()
        changed = [share for share in found.routes if share.gained or share.lost]
        cells = [[one.route, one.before, one.after, one.gained, one.lost] for one in changed]
        print_table(["route", "texts before", "after", "gained", "lost"], cells)
    if found.labelled:
        click.echo()
        click.echo(_agreement(found.labelled))


def _move_lines(move: Move, rows: list[Asked], examples: int, is_labelled: bool) -> list[list[object]]:
    """A line for each text shown; what was counted stands in the first."""
    counts = [len(move.places), *([move.fixed, move.broken] if is_labelled else [])]
    shown = [shortened(_text(rows[at])) for at in move.places[:examples]] or [""]
    blank = ["" for _ in counts]
    return [
        [move.before, move.after, *counts, text] if first else ["", "", *blank, text]
        for first, text in zip([True, *[False] * (len(shown) - 1)], shown, strict=True)
    ]


def _agreement(found: Agreement) -> str:
    return (
        f"with a label ({found.rows}): accuracy {found.before:.4f} before, {found.after:.4f} after; "
        f"{found.fixed} fixed, {found.broken} broken, McNemar's exact p = {found.p:.2g}"
    )


def _text(row: Asked) -> str:
    return next(iter(user_turns(row.prompt)), "")
