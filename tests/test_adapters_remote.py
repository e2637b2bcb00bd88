"""A remote store behind the local one: what one machine publishes, another fetches, verified."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters.base import Base
from adapters.classifiers import publish_classifier
from adapters.errors import NotFound, RegistryUnavailable, StoreCorrupted
from adapters.home import Home
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.remote import Remote
from adapters.store import Store
from adapters.types import AdapterVersion
from tests.adapter_folders import make_adapter, make_base, make_evidence
from tests.gateway_process import branchline
from tests.s3_server import BUCKET, S3Server, s3_server

fsspec = pytest.importorskip("fsspec")
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder of its own in the S3 server's bucket."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture(params=["file", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        found: str = request.getfixturevalue("bucket")
        return found
    return f"file://{tmp_path / 'bucket'}" if request.param == "file" else f"memory://{tmp_path.name}"


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return make_base(tmp_path / "pocket")


def elsewhere(url: str) -> tuple[Any, str]:
    """The store as another process sees it: its file system with a memory of its own, and the folder in it."""
    fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True)
    return fs, root


def remove(url: str, key: str) -> None:
    fs, root = elsewhere(url)
    fs.rm_file(f"{root}/{key}")


def publish(tmp_path: Path, base: Base, store: Store) -> tuple[Registry, AdapterVersion]:
    registry = Registry.open(f"sqlite:///{tmp_path / 'registry.db'}")
    registry.create_route("sql")
    folder = make_adapter(tmp_path / "adapter", base.id)
    return registry, publish_folder(registry, store, "sql", folder, base).version


def test_what_one_machine_publishes_another_fetches_and_verifies(tmp_path: Path, base: Base, url: str) -> None:
    _, version = publish(tmp_path, base, Store(tmp_path / "here", Remote(url)))
    there = Store(tmp_path / "there", Remote(url))
    there.verify_version(version)
    assert (there.folder("sql", version.digest) / "adapter_model.safetensors").is_file()


def test_a_damaged_cache_is_fetched_again(tmp_path: Path, base: Base, url: str) -> None:
    store = Store(tmp_path / "here", Remote(url))
    _, version = publish(tmp_path, base, store)
    weights = store.folder("sql", version.digest) / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(b"damaged")
    store.verify_version(version)
    assert weights.read_bytes() != b"damaged"


def test_a_damaged_remote_object_is_never_accepted(tmp_path: Path, base: Base, url: str) -> None:
    _, version = publish(tmp_path, base, Store(tmp_path / "here", Remote(url)))
    Remote(url).put(b"damaged", f"sql/{version.digest}/adapter_model.safetensors")
    with pytest.raises(StoreCorrupted, match="adapter_model"):
        Store(tmp_path / "there", Remote(url)).verify_version(version)


def test_a_folder_whose_manifest_never_came_does_not_exist(tmp_path: Path, base: Base, url: str) -> None:
    Remote(url).put(b"half", f"sql/{'0' * 64}/adapter_model.safetensors")
    with pytest.raises(NotFound):
        Store(tmp_path / "there", Remote(url)).verify("sql", "0" * 64)


def test_a_damaged_object_of_the_same_length_is_never_accepted(tmp_path: Path, base: Base, url: str) -> None:
    here = Store(tmp_path / "here", Remote(url))
    _, version = publish(tmp_path, base, here)
    content = bytearray((here.folder("sql", version.digest) / WEIGHTS).read_bytes())
    content[-1] ^= 1
    Remote(url).put(bytes(content), f"sql/{version.digest}/{WEIGHTS}")
    there = Store(tmp_path / "there", Remote(url))
    with pytest.raises(StoreCorrupted, match=r"adapter_model\.safetensors was altered"):
        there.verify_version(version)
    here.verify_version(version)  # the cache of who has it already is whole


def test_a_missing_object_is_named_and_the_version_comes_once_it_is_there_again(
    tmp_path: Path, base: Base, url: str
) -> None:
    here = Store(tmp_path / "here", Remote(url))
    _, version = publish(tmp_path, base, here)
    remove(url, f"sql/{version.digest}/{WEIGHTS}")
    there = Store(tmp_path / "there", Remote(url))
    with pytest.raises(StoreCorrupted, match=r"adapter_model\.safetensors is missing"):
        there.verify_version(version)
    fs, root = elsewhere(url)
    content = (here.folder("sql", version.digest) / WEIGHTS).read_bytes()
    fs.pipe_file(f"{root}/sql/{version.digest}/{WEIGHTS}", content)
    there.verify_version(version)


def test_a_publication_that_was_broken_off_is_completed_by_the_next(tmp_path: Path, base: Base, url: str) -> None:
    here = Store(tmp_path / "here", Remote(url))
    registry, version = publish(tmp_path, base, here)
    for name in ("manifest.json", "adapter_config.json"):  # as if it had died after the weights
        remove(url, f"sql/{version.digest}/{name}")
    there = Store(tmp_path / "there", Remote(url))
    with pytest.raises(NotFound, match="no stored version"):
        there.verify_version(version)
    publish_folder(registry, here, "sql", tmp_path / "adapter", base)
    there.verify_version(version)


def test_evidence_and_classifiers_travel_too(tmp_path: Path, base: Base, url: str) -> None:
    store = Store(tmp_path / "here", Remote(url))
    registry, version = publish(tmp_path, base, store)
    evidence = make_evidence(version.digest, base.fingerprint)
    digest = store.put_evidence(version.route, evidence)
    folder = tmp_path / "classifier"
    folder.mkdir()
    (folder / "classifier.json").write_text("{}")
    publish_classifier(registry, store, folder, digest="1" * 64, summary={})
    there = Store(tmp_path / "there", Remote(url))
    assert there.evidence("sql", digest) == evidence
    assert (there.classifier_folder("1" * 64) / "classifier.json").read_text() == "{}"


# -- S3 ---------------------------------------------------------------------------------------------------------------


def test_the_manifest_is_the_last_object_that_is_written(
    tmp_path: Path, base: Base, bucket: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote, before = Remote(bucket), set(s3.keys())
    put, seen = remote._fs.put_file, []

    def note(source: str, target: str) -> None:
        seen.append({key.rpartition("/")[2] for key in set(s3.keys()) - before})
        put(source, target)

    monkeypatch.setattr(remote._fs, "put_file", note)
    publish(tmp_path, base, Store(tmp_path / "here", remote))
    assert seen == [set(), {"adapter_config.json"}, {"adapter_config.json", WEIGHTS}]


def test_a_mistyped_bucket_is_refused_and_not_made(bucket: str, s3: S3Server) -> None:
    with pytest.raises(RegistryUnavailable) as refused:
        Remote("s3://mistyped/store").put(b"", "sql/1")
    assert "bucket does not exist" in refused.value.hint
    assert b"mistyped" not in s3.call("GET", "/")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "Unable to locate credentials"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "Could not connect to the endpoint"),
    ],
)
def test_without_credentials_or_a_server_the_command_says_so_and_publishes_nothing(
    tmp_path: Path, base: Base, bucket: str, s3: S3Server, changes: dict[str, str], reason: str
) -> None:
    home = tmp_path / "home"
    folder = make_adapter(tmp_path / "adapter", base.id)
    registry = Registry.open(Home.at(home).registry_url, actor="test")
    registry.create_route("sql")
    environment = {**s3.environment, "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"), **changes}
    words = ("adapter", "add", "sql", str(folder), "--base", str(base.folder), "--store", bucket)
    said = branchline(*words, home=home, expect=1, **environment)
    assert "the store at s3:// cannot be used" in said
    assert reason in said
    assert "secret" not in said
    assert registry.versions() == []
    registry.close()


def test_credentials_that_the_server_does_not_know_are_one_clear_error(bucket: str, s3: S3Server) -> None:
    remote = Remote(bucket)
    remote.put(b"x", "sql/1")
    with s3.refusing_unknown_keys(), pytest.raises(RegistryUnavailable) as refused:
        remote.get("sql/1")
    assert "Forbidden" in refused.value.hint


def test_a_store_that_cannot_be_used_is_one_clear_error() -> None:
    with pytest.raises(RegistryUnavailable, match="nosuchscheme"):
        Remote("nosuchscheme://bucket")


def test_what_an_object_store_says_of_itself_is_for_operators_only(tmp_path: Path) -> None:
    (tmp_path / "sql").write_text("a file where a folder belongs")
    with pytest.raises(RegistryUnavailable) as refused:
        Remote(f"file://{tmp_path}").put(b"", "sql/1")
    assert refused.value.message == "the store at file:// cannot be used"
    assert str(tmp_path) in refused.value.hint
