"""The `adapter` group: what exists. (`cli_route` has the `route` group: what is wanted.)"""

from __future__ import annotations

from pathlib import Path

import click

from .base import find_base
from .check import Limits
from .command import PATH, announce, find_version, open_home, read_bytes, wait_clock
from .errors import NotFound, StoreCorrupted
from .evidence import parse_evidence
from .home import Home, home_options
from .manifests import manifest_to_json
from .output import json_option, note, print_json, print_table
from .publish import Provenance, attach_evidence, publish_folder
from .types import AdapterVersion


@click.group()
def adapter() -> None:
    """Publish, list, verify and retire adapter versions."""


@adapter.command()
@click.argument("route")
@click.argument("folder", type=PATH)
@click.option("--base", required=True, help="Base model: a folder or a hub id in the local cache.")
@click.option("--evidence", "evidence_file", type=PATH, help="The evidence.json of this folder's evaluation.")
@click.option("--max-lora-rank", default=Limits().max_lora_rank, show_default=True, help="The engine's rank limit.")
@click.option("--base-is-same", metavar="WHY", help="Accept an adapter that names another base, and say why.")
@json_option
@home_options
def add(
    home: Home,
    route: str,
    folder: Path,
    base: str,
    evidence_file: Path | None,
    max_lora_rank: int,
    base_is_same: str | None,
    as_json: bool,
) -> None:
    """Publish the PEFT folder PATH as the next version of ROUTE. Nothing goes live."""
    registry, store = open_home(home)
    published = publish_folder(
        registry,
        store,
        route,
        folder,
        find_base(base, cache=home.fingerprints),
        evidence=parse_evidence(read_bytes(evidence_file)) if evidence_file else None,
        limits=Limits(max_lora_rank=max_lora_rank),
        provenance=Provenance(base_is_same=base_is_same),
    )
    version = published.version
    for line in version.manifest.notes:
        note(f"note: {line}")
    if published.left_behind:
        note(f"left behind: {', '.join(published.left_behind)}")
    if as_json:
        print_json({**version_json(version, "published"), "created": published.created})
    else:
        verb = "published" if published.created else "exists already as"
        click.echo(f"{verb} {version.ref} (rank {version.manifest.rank}, engine name {version.engine_name})")


@adapter.command()
@click.argument("version")
@click.argument("file", type=PATH)
@home_options
def evidence(home: Home, version: str, file: Path) -> None:
    """Attach evidence from FILE to VERSION (ROUTE@N)."""
    registry, store = open_home(home)
    found = find_version(registry, version)
    digest = attach_evidence(registry, store, found, parse_evidence(read_bytes(file)))
    click.echo(f"evidence {digest[:16]} attached to {found.ref}")


@adapter.command(name="list")
@click.argument("route", required=False)
@json_option
@home_options
def list_versions(home: Home, route: str | None, as_json: bool) -> None:
    """List versions, of ROUTE or of all routes."""
    registry, _ = open_home(home)
    states = {state.name: state for state in ([registry.route(route)] if route else registry.routes())}
    versions = [version for version in registry.versions(route) if version.route in states]
    if as_json:
        print_json([version_json(one, states[one.route].stage(one.number)) for one in versions])
        return
    rows = [
        (
            one.ref,
            states[one.route].stage(one.number),
            one.manifest.rank,
            one.manifest.base_id,
            one.digest[:16],
            len(registry.evidence_digests(one.route, one.number)),
            one.published_at,
        )
        for one in versions
    ]
    print_table(("version", "stage", "rank", "base", "digest", "evidence", "published"), rows)


@adapter.command()
@click.argument("version")
@json_option
@home_options
def show(home: Home, version: str, as_json: bool) -> None:
    """Show VERSION: its manifest, stage and evidence."""
    registry, _ = open_home(home)
    found = find_version(registry, version)
    document = version_json(found, registry.route(found.route).stage(found.number))
    document["evidence"] = registry.evidence_digests(found.route, found.number)
    if as_json:
        print_json(document)
    else:
        print_table(("field", "value"), [(name, _short(value)) for name, value in document.items()])


@adapter.command()
@click.argument("version", required=False)
@json_option
@home_options
def verify(home: Home, version: str | None, as_json: bool) -> None:
    """Hash stored files against their digests, of VERSION or of all versions. Exit 1 where one differs."""
    registry, store = open_home(home)
    versions = [find_version(registry, version)] if version else registry.versions()
    faults: dict[str, str] = {}
    for one in versions:
        try:
            store.verify_version(one)
        except (StoreCorrupted, NotFound) as error:
            faults[str(one.ref)] = error.message
    if as_json:
        print_json({"verified": len(versions) - len(faults), "faults": faults})
    else:
        click.echo(f"{len(versions) - len(faults)} of {len(versions)} versions are intact")
    if faults:
        raise StoreCorrupted("; ".join(faults.values()), hint="publish the same folders again, or retire the versions")


@adapter.command()
@click.argument("version")
@click.option("--why", help="Why, for the history.")
@click.option("--no-wait", is_flag=True, help="Do not wait until gateways follow.")
@home_options
def retire(home: Home, version: str, why: str | None, no_wait: bool) -> None:
    """Take VERSION out for good. Where it is live, the version before it takes over at once."""
    started = wait_clock()
    registry, _ = open_home(home)
    found = find_version(registry, version)
    change = registry.retire(found.route, found.number, why=why)
    announce(registry, change, f"{found.ref} retired", started, wait=not no_wait)


def version_json(version: AdapterVersion, stage: str) -> dict[str, object]:
    return {
        "version": str(version.ref),
        "stage": stage,
        "engine_name": version.engine_name,
        "published_at": version.published_at,
        **manifest_to_json(version.manifest),
    }


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
