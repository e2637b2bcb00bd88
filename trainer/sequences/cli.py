"""The `sequence` command. torch is imported only once there is work to do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from adapters.base import find_base
from adapters.home import Home, home_options
from adapters.output import json_option, note, print_json, print_table

from ..cli import exit_codes, quiet_libraries
from ..config import read_yaml
from ..errors import ConfigInvalid
from ..folder import write_json, write_text
from ..terminal import Terminal
from .config import SequenceConfig, read_sequence
from .folder import SequenceFolder
from .report import report_table, summarise_sequence


@click.command()
@click.argument("file", metavar="FILE.yaml", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder to write to.")
@click.option("--arm", "arms", multiple=True, help="Only this arm; may be given several times.")
@click.option("--seed", "seeds", multiple=True, type=int, help="Only this seed; may be given several times.")
@click.option("--report", is_flag=True, help="Train nothing: report what is there.")
@json_option
@home_options
def sequence(
    home: Home, file: Path, out: Path, arms: tuple[str, ...], seeds: tuple[int, ...], report: bool, as_json: bool
) -> None:
    """Train a sequence of tasks under one or more arms and seeds, and say what was forgotten.

    FILE.yaml names base, tasks, arms and seeds. What is done is left as it is; the same command goes on where it
    stopped, and commands with different --arm or --seed may work in one --out side by side.
    """
    folder = SequenceFolder(out)
    with exit_codes():
        config = read_sequence(read_yaml(file))
        require_known(config, arms, seeds)
        if not report:
            execute(home, config, folder, arms, seeds)
    found = write_report(file.stem, config, folder)
    note(f"report to look at: {folder.page}")
    if as_json:
        print_json(found)
    else:
        print_table(*report_table(found))


def require_known(config: SequenceConfig, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Raise `ConfigInvalid` for arms and seeds that the file does not name."""
    known, named = [arm.name for arm in config.arms], all_seeds(config)
    problems = [f"--arm {name}: no such arm, known are {', '.join(known)}" for name in arms if name not in known]
    problems += [f"--seed {seed}: the file names {named}" for seed in seeds if seed not in named]
    if problems:
        raise ConfigInvalid(problems, hint="name arms and seeds of the file")


def all_seeds(config: SequenceConfig) -> list[int]:
    """Every seed of any arm, the sequence's first."""
    return list(dict.fromkeys([*config.seeds, *(seed for arm in config.arms for seed in config.seeds_of(arm))]))


def execute(
    home: Home, config: SequenceConfig, folder: SequenceFolder, arms: Sequence[str], seeds: Sequence[int]
) -> None:
    """Train and score what is left of the arms and seeds, by default of all."""
    quiet_libraries()
    from .run import prepare_sequence

    with Terminal().listening() as terminal:
        run = prepare_sequence(config, find_base(config.base, cache=home.fingerprints), folder, terminal)
        run.run(
            [arm for arm in config.arms if not arms or arm.name in arms],
            [seed for seed in all_seeds(config) if not seeds or seed in seeds],
            lambda: write_json(folder.report, summarise_sequence(config, folder)),
        )


def write_report(title: str, config: SequenceConfig, folder: SequenceFolder) -> dict[str, object]:
    """What is there as JSON and as a page; the plots are imported only here."""
    from .page import render_sequence

    found = summarise_sequence(config, folder)
    write_json(folder.report, found)
    write_text(folder.page, render_sequence(title, found))
    return found
