"""The resolver without an engine: which names are ours, what is refused, and who asks twice."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapters.check import WEIGHTS_FILE
from adapters.engine.copies import Copies, copies_root
from adapters.engine.resolver import Resolver, open_store
from adapters.errors import BadInput, InvalidName, NotFound, StoreCorrupted
from adapters.remote import MANIFEST_FILE, Remote
from adapters.store import Store
from tests.engine_store import DAMAGES, SQL, EngineStore
from tests.vllm_engine import POCKET_BASE

BASE = str(POCKET_BASE)
NOT_OURS = [
    "sql",
    "sql@1",
    "base",
    "../x@1.0123456789abcdef",
    "x/../sql@1.0123456789abcdef",
    "sql@1.0123456789ABCDEF",
    "sql@1.0123456789abcde",
    "sql@1.0123456789abcdef0",
    "sql@0.0123456789abcdef",
    "sql@1.0123456789abcdef\n",
    "sql@1.0123456789abcdef/..",
    "SQL@1.0123456789abcdef",
    "/etc/passwd",
    "sql@１.0123456789abcdef",
    "ſql@1.0123456789abcdef",
    "s" * 64 + "@1.0123456789abcdef",
    "a" * 100_000,
    "",
    "\x00",
]


@dataclass(frozen=True)
class House:
    """A store, and a resolver on it as `register` would build it."""

    stored: EngineStore
    resolver: Resolver
    root: Path

    def ask(self, name: str, model: str = BASE) -> Path | None:
        return asyncio.run(self.resolver.folder(model, name))


def house_at(tmp_path: Path, location: str, remote: str | None = None) -> House:
    root = copies_root(tmp_path / "copies")
    return House(EngineStore(tmp_path / "store", remote), Resolver(location, root, Copies(root)), root)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return house_at(tmp_path, str(tmp_path / "store"))


def same_bytes(copy: Path | None, stored: Path) -> bool:
    return copy is not None and (copy / WEIGHTS_FILE).read_bytes() == (stored / WEIGHTS_FILE).read_bytes()


def test_an_engine_name_becomes_our_copy(house: House) -> None:
    name = house.stored.publish(1)
    copy = house.ask(name)
    assert same_bytes(copy, house.stored.folder(name))
    assert copy is not None
    assert copy.is_relative_to(house.root)


@pytest.mark.parametrize("name", NOT_OURS, ids=lambda name: repr(name[:30]))
def test_other_names_are_not_ours_and_nothing_is_read(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    house = house_at(tmp_path, "nowhere://a-store-that-cannot-be-opened")  # which would leave a line and a folder
    assert house.ask(name) is None
    assert caplog.records == []
    assert not house.root.exists()


def test_a_store_that_cannot_be_opened_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert house_at(tmp_path, "nowhere://bucket").ask("sql@1.0123456789abcdef") is None
    (record,) = caplog.records
    assert "sql@1.0123456789abcdef not served: the store at nowhere:// cannot be used" in record.getMessage()


@pytest.mark.parametrize("name", ["sql@1.0123456789abcdef", "auto@1.0123456789abcdef"])
def test_what_is_not_stored_is_none(house: House, name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert house.ask(name) is None
    assert len(caplog.records) == 1


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_before_the_first_use_is_none_and_right_once_published_again(
    house: House, damage: Callable[[Path, Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    name, other = house.stored.publish(1), house.stored.publish(2)
    damage(house.stored.folder(name), house.stored.folder(other))
    assert house.ask(name) is None
    assert len(caplog.records) == 1
    house.stored.publish(1)
    assert same_bytes(house.ask(name), house.stored.folder(name))


def test_an_adapter_of_another_base_is_none(house: House, caplog: pytest.LogCaptureFixture) -> None:
    assert house.ask(house.stored.publish(1, base_fingerprint="f" * 64)) is None
    assert "trained on base ffffffffffffffff, this is" in caplog.text


def test_where_the_base_is_not_in_sight_it_is_served_and_said_once(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (house.stored.publish(seed, base_fingerprint="f" * 64) for seed in (1, 2))
    assert house.ask(first, "/no/such/base") is not None
    assert house.ask(second, "/no/such/base") is not None
    assert [record.getMessage()[:15] for record in caplog.records] == ["base unverified"]


def test_a_place_that_cannot_be_written_is_one_line(house: House, caplog: pytest.LogCaptureFixture) -> None:
    name = house.stored.publish(1)
    house.root.parent.write_text("a file where the copies would go")
    assert house.ask(name) is None
    (record,) = caplog.records
    assert (record.levelno, record.getMessage().startswith(f"{name} not served: ")) == (logging.WARNING, True)


def test_who_asks_together_waits_for_one_copy_and_who_leaves_does_not_stop_it(house: House) -> None:
    name = house.stored.publish(1)
    house.root.mkdir(parents=True)

    async def ask() -> Path | None:
        held = os.open(house.root, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)  # the copy waits for this
        leaves, *stay = [asyncio.create_task(house.resolver.folder(BASE, name)) for _ in range(5)]
        await asyncio.sleep(0)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        assert leaves.cancelled()
        os.close(held)
        found = set(await asyncio.gather(*stay))
        assert len(found) == 1
        return found.pop()

    copy = asyncio.run(ask())
    assert same_bytes(copy, house.stored.folder(name))
    assert copy is not None
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_a_cache_is_not_kept_where_somebody_else_may_write(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("fsspec")
    house = house_at(tmp_path, f"file://{tmp_path / 'bucket'}", f"file://{tmp_path / 'bucket'}")
    (tmp_path / "theirs").mkdir()
    house.root.parent.mkdir()
    house.root.symlink_to(tmp_path / "theirs")
    assert house.ask(house.stored.publish(1)) is None
    assert list((tmp_path / "theirs").iterdir()) == []
    assert "set BRANCHLINE_ENGINE_COPIES to another place" in caplog.text


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_a_remote_store_is_fetched_and_verified(tmp_path: Path, scheme: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("fsspec")
    url = f"file://{tmp_path / 'bucket'}" if scheme == "file" else f"memory://{tmp_path.name}"
    house = house_at(tmp_path, url, url)
    good, bad = house.stored.publish(1), house.stored.publish(2)
    Remote(url).put(b"damaged", f"sql/{house.stored.folder(bad).name}/{WEIGHTS_FILE}")
    assert same_bytes(house.ask(good), house.stored.folder(good))
    assert house.ask(bad) is None
    assert "was altered" in caplog.text


@pytest.mark.parametrize("file", [WEIGHTS_FILE, MANIFEST_FILE])
def test_a_damaged_cache_of_a_remote_store_is_fetched_again(tmp_path: Path, file: str) -> None:
    pytest.importorskip("fsspec")
    url = f"file://{tmp_path / 'bucket'}"
    house = house_at(tmp_path, url, url)
    name = house.stored.publish(1)
    digest = house.stored.folder(name).name
    cached = open_store(url, house.root)
    cached.manifest(SQL, digest)
    (cached.folder(SQL, digest) / file).chmod(0o600)
    (cached.folder(SQL, digest) / file).write_bytes(b"damaged")
    assert same_bytes(house.ask(name), house.stored.folder(name))


def test_an_error_of_the_object_stores_own_client_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fsspec: Any = pytest.importorskip("fsspec")

    class NoCredentials(Exception):
        """As botocore's: of no tree that we know."""

    class Locked(fsspec.AbstractFileSystem):  # type: ignore[misc]
        protocol = "locked"

        def ls(self, *_: object, **__: object) -> None:
            raise NoCredentials("unable to locate credentials")

    fsspec.register_implementation("locked", Locked, clobber=True)
    assert house_at(tmp_path, "locked://bucket").ask("sql@1.0123456789abcdef") is None
    assert "the store at locked:// cannot be used (unable to locate credentials; check --store" in caplog.text


def test_the_store_finds_a_digest_by_its_beginning_here_and_there(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    url = f"memory://{tmp_path.name}"
    stored = EngineStore(tmp_path / "store", url)
    name = stored.publish(1)
    digest = stored.folder(name).name
    elsewhere = Store(tmp_path / "elsewhere", Remote(url))
    assert stored.store.find("sql", digest[:16]) == digest == elsewhere.find("sql", digest[:16])
    for store in (stored.store, elsewhere):
        with pytest.raises(NotFound):
            store.find("sql", "0" * 16)
        with pytest.raises(NotFound):
            store.find("other", digest[:16])


def test_two_versions_with_one_beginning_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for end in "ab":
        folder = tmp_path / "sql" / ("0" * 63 + end)
        folder.mkdir(parents=True)
        (folder / "manifest.json").touch()
    with pytest.raises(StoreCorrupted, match="2 stored versions begin with sql/0000000000000000"):
        store.find("sql", "0" * 16)


def test_a_folder_without_its_manifest_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "sql" / ("0" * 64)).mkdir(parents=True)
    with pytest.raises(NotFound):
        Store(tmp_path).find("sql", "0" * 16)


@pytest.mark.parametrize("beginning", ["", "0" * 15, "0" * 64, "*" * 16, "../../../../etc/", "0123456789ABCDEF"])
def test_only_sixteen_hex_digits_are_looked_for(tmp_path: Path, beginning: str) -> None:
    with pytest.raises(BadInput):
        Store(tmp_path).find("sql", beginning)
    with pytest.raises(InvalidName):
        Store(tmp_path).find("../sql", "0" * 16)
