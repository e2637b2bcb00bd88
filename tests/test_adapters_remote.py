"""A remote store behind the local one: what one machine publishes, another fetches, verified."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters.base import Base
from adapters.classifiers import publish_classifier
from adapters.errors import NotFound, RegistryUnavailable, StoreCorrupted
from adapters.publish import publish_folder
from adapters.registry import Registry
from adapters.remote import Remote
from adapters.store import Store
from adapters.types import AdapterVersion
from tests.adapter_folders import make_adapter, make_base, make_evidence

fsspec = pytest.importorskip("fsspec")


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"file://{tmp_path / 'bucket'}" if request.param == "file" else f"memory://{tmp_path.name}"


@pytest.fixture
def base(tmp_path: Path) -> Base:
    return make_base(tmp_path / "pocket")


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


def test_a_store_that_cannot_be_used_is_one_clear_error() -> None:
    with pytest.raises(RegistryUnavailable, match="nosuchscheme"):
        Remote("nosuchscheme://bucket")


def test_what_an_object_store_says_of_itself_is_for_operators_only(tmp_path: Path) -> None:
    (tmp_path / "sql").write_text("a file where a folder belongs")
    with pytest.raises(RegistryUnavailable) as refused:
        Remote(f"file://{tmp_path}").put(b"", "sql/1")
    assert refused.value.message == "the store at file:// cannot be used"
    assert str(tmp_path) in refused.value.hint
