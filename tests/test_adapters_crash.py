"""kill -9 of real processes at random moments: 110 while they publish, 110 while they promote."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.base import Base
from adapters.check import FILES
from adapters.fold import fold_routes
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.remote import MANIFEST_FILE
from adapters.store import Store
from tests.adapter_crasher import ROUTE, open_home
from tests.adapter_folders import make_adapter, make_base, memory_folder

KILLS = 110


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        yield Path(folder)


def prepare(home: Path, versions: int) -> Base:
    base = make_base(home / "pocket")
    registry, store = open_home(home)
    registry.create_route(ROUTE)
    for seed in range(versions):
        publish_folder(registry, store, ROUTE, make_adapter(home / "first" / str(seed), "pocket", seed=seed), base)
    registry.close()
    return base


def kill_while(kind: str, home: Path, *, seed: int) -> list[list[Any]]:
    """Run the crasher; returns what was acknowledged to the killed, having seen that most died in an operation."""
    command = [sys.executable, "-m", "tests.adapter_crasher", kind, str(home), str(KILLS), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["kills"] == KILLS
    assert found["died_inside"] > KILLS // 4
    assert found["acknowledged"]
    acknowledged: list[list[Any]] = found["acknowledged"]
    return acknowledged


def assert_whole(registry: Registry, store: Store) -> None:
    """Serials without gaps, the view the fold, every version intact in the store and every stored version whole."""
    events = registry.events()
    assert [event.serial for event in events] == list(range(1, registry.serial() + 1))
    assert {state.name: state for state in registry.routes()} == fold_routes(events)
    versions = registry.versions()
    assert [version.number for version in versions] == list(range(1, registry.route(ROUTE).latest + 1))
    published = [(event.number, event.payload["digest"]) for event in events if event.kind == "published"]
    assert published == [(version.number, version.digest) for version in versions]
    for version in versions:
        store.verify_version(version)
    for folder in (store.root / ROUTE).iterdir():  # also those that no event names
        assert {file.name for file in folder.iterdir()} == {*FILES, MANIFEST_FILE}
        store.verify(ROUTE, folder.name)


def test_after_110_kills_while_publishing_no_version_is_half_there_and_the_same_bytes_publish_again(home: Path) -> None:
    base = prepare(home, 0)
    acknowledged = kill_while("publish", home, seed=1)
    registry, store = open_home(home)
    assert_whole(registry, store)
    numbers = {version.number: version.digest for version in registry.versions()}
    for _, number, digest in acknowledged:
        assert numbers[number] == digest
    assert len({number for _, number, _ in acknowledged}) == len(acknowledged)

    known = set(numbers.values())
    for source in sorted((home / "sources").iterdir()):
        if not all((source / name).exists() and (source / name).stat().st_size for name in FILES):
            shutil.rmtree(source)  # killed while it made its source
            continue
        done = publish_folder(registry, store, ROUTE, source, base)
        assert done.created == (done.version.digest not in known)
    assert_whole(registry, store)
    registry.close()


def test_after_110_kills_while_promoting_no_event_is_lost_or_doubled(home: Path) -> None:
    prepare(home, 3)
    acknowledged = kill_while("promote", home, seed=2)
    registry, store = open_home(home)
    assert_whole(registry, store)
    kinds = {event.serial: event.kind for event in registry.events()}
    for _, serial, kind in acknowledged:
        assert kinds[serial] == kind
    assert len({serial for _, serial, _ in acknowledged}) == len(acknowledged)
    # What was done without being acknowledged: at most the one operation that each of the killed was in.
    assert len(acknowledged) <= len(kinds) - 4 <= len(acknowledged) + KILLS
    registry.close()
