"""An engine's copies: verified, private, mended, and removed only when their engine is dead."""

from __future__ import annotations

import resource
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from adapters.check import CONFIG_FILE, FILES, WEIGHTS_FILE
from adapters.engine.copies import Copies, copies_root
from adapters.errors import BadInput, StoreCorrupted
from adapters.types import Manifest
from tests.engine_store import DAMAGES, SQL, EngineStore, swap

HOLDER = """
import sys
from pathlib import Path
from adapters.engine.copies import Copies
from adapters.store import Store
store = Store(Path(sys.argv[1]))
print(Copies(Path(sys.argv[2])).take(store, "sql", store.manifest("sql", sys.argv[3])), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def stored(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "store")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return copies_root(tmp_path / "copies")


def manifest(stored: EngineStore, name: str) -> Manifest:
    return stored.store.manifest(SQL, stored.folder(name).name)


def test_a_copy_is_the_two_files_read_only_and_private(stored: EngineStore, root: Path) -> None:
    name = stored.publish(1)
    copy = Copies(root).take(stored.store, SQL, manifest(stored, name))
    assert {file.name for file in copy.iterdir()} == set(FILES)
    for file in FILES:
        assert (copy / file).read_bytes() == (stored.folder(name) / file).read_bytes()
        assert stat.S_IMODE((copy / file).stat().st_mode) == 0o400
        assert (copy / file).stat().st_nlink == 1
    assert stat.S_IMODE(copy.stat().st_mode) == 0o500
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (copy.parent, root)} == {0o700}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_happens_to_the_store_afterwards_does_not_reach_the_copy(
    stored: EngineStore, root: Path, damage: Callable[[Path, Path], None]
) -> None:
    name, other = stored.publish(1), stored.publish(2)
    copies, known = Copies(root), manifest(stored, name)
    copy = copies.take(stored.store, SQL, known)
    before = (copy / WEIGHTS_FILE).read_bytes()
    damage(stored.folder(name), stored.folder(other))
    assert (copy / WEIGHTS_FILE).read_bytes() == before
    assert copies.take(stored.store, SQL, known) == copy


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files_are_never_copied_and_no_half_copy_is_left(
    stored: EngineStore, root: Path, damage: Callable[[Path, Path], None]
) -> None:
    name, other = stored.publish(1), stored.publish(2)
    copies, known = Copies(root), manifest(stored, name)
    damage(stored.folder(name), stored.folder(other))
    with pytest.raises(StoreCorrupted, match=WEIGHTS_FILE):
        copies.take(stored.store, SQL, known)
    (mine,) = root.glob("engine-*")
    assert list(mine.iterdir()) == []


def test_a_manifest_without_one_of_the_two_files_is_refused(stored: EngineStore, root: Path) -> None:
    known = manifest(stored, stored.publish(1))
    without = replace(known, files={CONFIG_FILE: known.files[CONFIG_FILE]})
    with pytest.raises(StoreCorrupted, match=f"{WEIGHTS_FILE} was altered"):
        Copies(root).take(stored.store, SQL, without)


def test_a_copy_that_cannot_be_finished_leaves_nothing(stored: EngineStore, root: Path) -> None:
    copies, known = Copies(root), manifest(stored, stored.publish(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # as a full disk: the write itself fails
    try:
        with pytest.raises(OSError, match="File too large"):
            copies.take(stored.store, SQL, known)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (mine,) = root.glob("engine-*")
    assert list(mine.iterdir()) == []
    assert copies.take(stored.store, SQL, known).is_dir()


def test_an_altered_copy_is_mended_in_its_place(stored: EngineStore, root: Path) -> None:
    name, other = stored.publish(1), stored.publish(2)
    copies, known = Copies(root), manifest(stored, name)
    copy = copies.take(stored.store, SQL, known)
    swap(copy, stored.folder(other))
    assert copies.take(stored.store, SQL, known) == copy
    assert (copy / WEIGHTS_FILE).read_bytes() == (stored.folder(name) / WEIGHTS_FILE).read_bytes()
    assert [path.name for path in copy.parent.iterdir()] == [known.digest]


def test_many_threads_get_one_copy(stored: EngineStore, root: Path) -> None:
    copies, known = Copies(root), manifest(stored, stored.publish(1))
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(copies.take(stored.store, SQL, known))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in found[0].parent.iterdir()] == [known.digest]
    assert len(copies) == 1


def test_nothing_is_touched_before_the_first_copy(root: Path) -> None:
    assert len(Copies(root)) == 0
    assert not root.exists()


def test_a_folder_of_somebody_else_is_not_used(stored: EngineStore, root: Path, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    root.parent.mkdir()
    root.symlink_to(tmp_path / "theirs")
    with pytest.raises(BadInput, match="BRANCHLINE_ENGINE_COPIES"):
        Copies(root).take(stored.store, SQL, manifest(stored, stored.publish(1)))


@contextmanager
def engine_process(stored: EngineStore, root: Path, name: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a copy, as an engine does, and where the copy lies."""
    command = [sys.executable, "-c", HOLDER, str(stored.store.root), str(root), stored.folder(name).name]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def test_the_next_start_removes_copies_of_dead_engines_and_of_no_other(stored: EngineStore, root: Path) -> None:
    name = stored.publish(1)
    known = manifest(stored, name)
    with engine_process(stored, root, name) as (_, living), engine_process(stored, root, name) as (victim, dead):
        assert living.is_dir()
        assert dead.is_dir()
        assert living != dead
        victim.kill()
        victim.wait()
        assert dead.is_dir()
        mine = Copies(root).take(stored.store, SQL, known)
        assert not dead.parent.exists()
        assert living.is_dir()
        assert mine.is_dir()
