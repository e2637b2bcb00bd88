"""`branchline doctor`: what this installation can do, and what is wrong with it, found out rather than assumed."""

from __future__ import annotations

import asyncio
import os
import platform
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed_version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import click
from sqlalchemy import inspect, make_url

from adapters.base import find_base
from adapters.classifiers import live_classifier
from adapters.command import open_home
from adapters.convergence import is_alive, silent_seconds
from adapters.errors import BranchlineError
from adapters.home import Home, home_options
from adapters.output import json_option, print_json, print_table
from adapters.registry import Registry
from adapters.schema import metadata
from adapters.store import Store
from adapters.types import AdapterVersion

from ..classify.loader import load_classifier
from ..errors import ConfigInvalid
from ..settings import API_KEY, ENGINE_KEY, ENGINE_PYTHON

Level = Literal["ok", "note", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. `problem` means that something will not work until it is mended."""

    what: str
    level: Level
    found: str


Check = Callable[[], Iterator[Finding]]


@click.command()
@click.option("--base", help="Also look at this base model, and whether stored versions belong to it.")
@click.option(
    "--engine",
    "engine_urls",
    multiple=True,
    metavar="URL",
    help="Also look at this vLLM; key: BRANCHLINE_ENGINE_API_KEY.",
)
@json_option
@home_options
def doctor(home: Home, base: str | None, engine_urls: tuple[str, ...], as_json: bool) -> None:
    """Say what this installation can do, and what is wrong with it. Exit 1 where there is a problem."""
    findings = examine(home, base, engine_urls)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(("what", "level", "found"), [(one.what, one.level, one.found) for one in findings])
    problems = [finding for finding in findings if finding.level == "problem"]
    if problems:
        raise BranchlineError(f"{len(problems)} problem{'s' if len(problems) > 1 else ''}", hint="see the table above")


def examine(home: Home, base: str | None, engine_urls: Sequence[str] = ()) -> list[Finding]:
    """Every check, each on its own: one that fails is a finding and does not stop the others."""
    checks: dict[str, Check] = {
        "packages": _packages,
        "engines": _engines,
        "engine vllm": _vllm,
        "home": lambda: _home(home.folder),
        "key": _key,
        "base": lambda: _base(home, base),
        **{f"engine at {url}": partial(_engine, url, base) for url in engine_urls},
    }
    if _has_registry(home):  # looking must not make one where there is none
        checks["registry"] = lambda: _registry(home)
        checks["classifier"] = lambda: _classifier(home)
        checks["gateways"] = lambda: _gateways(home)
    return [finding for what, check in checks.items() for finding in _guarded(what, check)]


def _has_registry(home: Home) -> bool:
    return home.names_registry or Path(make_url(home.registry_url).database or "").exists()


def _guarded(what: str, check: Check) -> Iterator[Finding]:
    try:
        yield from check()
    except BranchlineError as error:
        yield Finding(what, "problem", str(error))


def _packages() -> Iterator[Finding]:
    yield Finding("python", "ok", platform.python_version())
    for name in ("branchline", "fastapi", "scikit-learn", "torch", "transformers", "peft"):
        try:
            yield Finding(name, "ok", installed_version(name))
        except PackageNotFoundError:
            yield Finding(name, "note", "not installed")


def _engines() -> Iterator[Finding]:
    missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
    if missing:
        yield Finding("engine embedded", "note", f"not available: install {', '.join(missing)}")
    else:
        yield Finding("engine embedded", "ok", "available")


def _vllm() -> Iterator[Finding]:
    from ..backends.vllm.preflight import TESTED_VERSION, check_python

    python = os.environ.get(ENGINE_PYTHON) or sys.executable
    try:
        notes = asyncio.run(check_python(python, os.environ))
    except ConfigInvalid as error:  # one may well do without it
        yield Finding("engine vllm", "note", f"not available: {error}")
        return
    yield Finding("engine vllm", "ok", "; ".join(notes) or f"vLLM {TESTED_VERSION} and its plugin in {python}")


def _engine(url: str, base: str | None) -> Iterator[Finding]:
    """What a running vLLM can do, found out by asking it."""
    from ..backends.vllm.capabilities import examine_engine, findings

    base_id = None if base is None else find_base(base).id
    for what, level, found in findings(examine_engine(url, os.environ.get(ENGINE_KEY) or None, base_id=base_id)):
        yield Finding(f"{what} at {url}", level, found)


def _home(folder: Path) -> Iterator[Finding]:
    if not folder.exists():
        yield Finding("home", "note", f"{folder} does not exist yet; the first command that writes makes it")
        return
    mode = stat.S_IMODE(folder.stat().st_mode)
    if mode & 0o077:
        yield Finding("home", "problem", f"{folder} has mode {mode:04o}; others may read it: chmod 700")
    elif not os.access(folder, os.W_OK):
        yield Finding("home", "problem", f"{folder} is not writable")
    else:
        yield Finding("home", "ok", str(folder))


def _key() -> Iterator[Finding]:
    if os.environ.get(API_KEY):
        yield Finding("key", "ok", f"{API_KEY} is set")
    else:
        yield Finding("key", "note", f"{API_KEY} is not set: only loopback can be served")


def _registry(home: Home) -> Iterator[Finding]:
    registry, _ = open_home(home)
    store = home.open_store()
    missing = sorted(set(metadata.tables) - set(inspect(registry.engine).get_table_names()))
    if missing:
        yield Finding("registry", "problem", f"lacks {', '.join(missing)}: restore it from a backup")
        return
    yield Finding("registry", "ok", f"serial {registry.serial()}, {len(registry.routes())} routes")
    for one in _servable(registry):
        yield from _guarded(f"version {one.ref}", partial(_version, store, one))


def _servable(registry: Registry) -> list[AdapterVersion]:
    retired = {state.name: state.retired for state in registry.routes()}
    return [one for one in registry.versions() if one.number not in retired[one.route]]


def _classifier(home: Home) -> Iterator[Finding]:
    registry, _ = open_home(home)
    live = live_classifier(registry)
    if live is None:
        yield Finding("classifier", "note", "none is live: `auto` goes to the base")
    else:
        loaded = load_classifier(home.open_store().classifier_folder(live.digest), digest=live.digest)
        yield Finding("classifier", "ok", f"{live.number} ({live.digest[:16]}), {len(loaded.routes)} routes")
        unknown = set(loaded.routes) - {state.name for state in registry.routes()}
        if unknown:
            yield Finding("classifier", "problem", f"knows routes that do not exist: {', '.join(sorted(unknown))}")


def _gateways(home: Home) -> Iterator[Finding]:
    registry, _ = open_home(home)
    for row in registry.gateways():
        alive = is_alive(row)
        state = "alive" if alive else f"last seen {silent_seconds(row):.0f} s ago"
        yield Finding(f"gateway {row.gateway_id}", "ok" if alive else "note", f"{state}, serial {row.serial}")
        if alive and row.base_unverified:
            found = f"base unverified: nobody could look at the {row.base_id!r} that its engine serves"
            yield Finding(f"gateway {row.gateway_id}", "note", found)
        for name, in_force in row.routes.items():
            if alive and in_force.problem:
                yield Finding(f"gateway {row.gateway_id}", "problem", f"route {name}: {in_force.problem}")


def _version(store: Store, version: AdapterVersion) -> Iterator[Finding]:
    store.verify(version.route, version.digest)
    yield Finding(f"version {version.ref}", "ok", "intact")


def _base(home: Home, name: str | None) -> Iterator[Finding]:
    if name is None:
        return
    base = find_base(name, cache=home.fingerprints)
    yield Finding("base", "ok", f"{base.id} ({base.fingerprint[:16]})")
    for one in _servable(open_home(home)[0]) if _has_registry(home) else ():
        if one.manifest.base_fingerprint != base.fingerprint:
            yield Finding(f"version {one.ref}", "problem", f"belongs to another base ({one.manifest.base_id})")
