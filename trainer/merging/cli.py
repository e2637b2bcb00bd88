"""The `merge` command: adapters in, one adapter and the record of how it came to be out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from adapters.base import Base, find_base
from adapters.command import open_home
from adapters.home import Home, home_options
from adapters.output import json_option, note, print_json, print_table
from adapters.publish import Provenance, publish_folder
from adapters.rows import sha256_file

from ..cli import config_options, exit_codes, given, quiet_libraries, say_published
from ..folder import RunFolder
from ..terminal import Terminal
from .config import MergeSettings, read_merge
from .inputs import Source, find_sources

Record = Mapping[str, Any]


@click.command()
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT[=WEIGHT]...")
@config_options(MergeSettings)
@click.option("--publish", metavar="ROUTE", help="Publish the result as the next version of ROUTE, without evidence.")
@json_option
@home_options
def merge(home: Home, inputs: tuple[str, ...], publish: str | None, as_json: bool, **options: object) -> None:
    """Make one adapter of several, or a scaled one of one. INPUT is an adapter folder or ROUTE@N.

    Everything is computed on the product ΔW = s B A in float32. `scale` moves between base and adapter, `soup` is
    the mean, `sum` the weighted sum (both exact until --rank cuts them), `ties` and `dare` go through dense
    matrices. The result has no evidence: `branchline evaluate` gives it some, and without it nothing is promoted.
    What --sweep chose is judged on rows it has not seen with `branchline evaluate --part evidence`.
    """
    with exit_codes():
        settings, named = read_merge(given(options), inputs)
        if publish:
            open_home(home)[0].route(publish)
        base = find_base(settings.base, cache=home.fingerprints)
        sources = find_sources(home, named, base)
        digests = {name: sha256_file(file) for name, file in settings.files.items()}
        identity = settings.identity(base.fingerprint, [one.facts for one in sources], digests)
        folder = RunFolder(settings.out)
        record: Record | None = folder.finished(identity)
        if record is None:
            record = execute(settings, base, sources, identity, folder)
        else:
            note(f"already merged: {settings.out.name} holds the finished merge of these inputs")
        published = publish_merged(home, publish, base, folder, sources, record) if publish else {}
    show({**record, **published}, as_json)


def execute(settings: MergeSettings, base: Base, sources: Sequence[Source], identity: str, folder: RunFolder) -> Record:
    quiet_libraries()
    from .run import run_merge

    with folder.locked(), Terminal().listening() as terminal:
        return run_merge(settings, base, sources, identity, folder, terminal)


def publish_merged(
    home: Home, route: str, base: Base, folder: RunFolder, sources: Sequence[Source], record: Record
) -> Record:
    """Publish the merged adapter with its inputs as parents; the same bytes again change nothing."""
    registry, store = open_home(home)
    provenance = Provenance(
        training={name: record[name] for name in ("settings", "inputs", "energy_lost")},
        data_digests={name: one["sha256"] for name, one in record["files"].items()},
        parents=tuple(one.parent for one in sources),
    )
    published = publish_folder(registry, store, route, folder.adapter, base, provenance=provenance)
    return say_published(published)


def show(record: Record, as_json: bool) -> None:
    """The record as JSON, or its figures as short tables."""
    if as_json:
        print_json(record)
        return
    share = len(record["inputs"]) if record["settings"]["method"] == "soup" else 1  # the mean: each an equal part
    print_table(("input", "weight"), [(one["name"], f"{one['weight'] / share:.3g}") for one in record["inputs"]])
    lost = record["energy_lost"]
    click.echo(
        f"{record['settings']['method']}: rank {record['rank']}, energy lost to the rank: "
        f"{lost['max']:.2%} in the worst layer, {lost['mean']:.2%} in the mean"
    )
