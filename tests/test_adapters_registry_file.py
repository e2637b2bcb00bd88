"""A SQLite registry whose file is moved away or replaced: nobody goes on with the old one unseen."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from adapters.errors import RegistryUnavailable
from adapters.registry import Registry


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "home" / "registry.db"


@pytest.fixture
def registry(file: Path) -> Iterator[Registry]:
    with closing(Registry.open(f"sqlite:///{file}", actor="test")) as opened:
        opened.create_route("sql")
        yield opened


def copy_to(file: Path, target: Path) -> None:
    with closing(sqlite3.connect(file)) as source, closing(sqlite3.connect(target)) as copy:
        source.backup(copy)


def test_a_file_that_is_moved_away_is_an_error_and_no_empty_one_is_made_in_its_place(
    registry: Registry, file: Path
) -> None:
    away = file.parent.rename(file.parent.with_name("away"))
    for _ in range(3):
        with pytest.raises(RegistryUnavailable, match="the registry's file is gone"):
            registry.routes()
        with pytest.raises(RegistryUnavailable, match="the registry's file is gone"):
            registry.create_route("booking")
    assert not file.parent.exists()
    away.rename(file.parent)
    assert [state.name for state in registry.routes()] == ["sql"]


def test_where_another_file_is_put_in_its_place_that_one_is_read_and_written(
    registry: Registry, file: Path, tmp_path: Path
) -> None:
    copy_to(file, tmp_path / "copy")
    registry.create_route("lost")
    registry.engine.dispose()
    (tmp_path / "copy").replace(file)
    assert [state.name for state in registry.routes()] == ["sql"]
    registry.create_route("kept")
    with closing(Registry.open(f"sqlite:///{file}")) as other:
        assert [state.name for state in other.routes()] == ["kept", "sql"]
