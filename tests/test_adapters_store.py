"""`Store` and `publish_folder`: what is placed, what is refused, what is mended."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from adapters.base import Base
from adapters.check import CONFIG_FILE, FILES, WEIGHTS_FILE
from adapters.errors import BadAdapter, BadInput, BranchlineError, InvalidName, NotFound, Refused, StoreCorrupted
from adapters.manifests import manifest_to_json, parse_manifest, weights_digest
from adapters.promotion import promote
from adapters.publish import Provenance, Published, attach_evidence, publish_folder
from adapters.registry import Registry
from adapters.remote import MANIFEST_FILE
from adapters.store import Store
from adapters.types import RouteName
from tests.adapter_folders import evaluation, make_adapter, make_base, make_evidence

SQL = RouteName("sql")


@dataclass(frozen=True)
class House:
    """A registry with a route, a store, a base and a good adapter folder."""

    registry: Registry
    store: Store
    base: Base
    folder: Path

    def publish(self, folder: Path | None = None, **options: str) -> Published:
        provenance = Provenance(training={"note": options["note"]}) if options else None
        return publish_folder(self.registry, self.store, SQL, folder or self.folder, self.base, provenance=provenance)

    def stored(self) -> Path:
        return self.store.folder(SQL, weights_digest(self.folder))


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    registry = Registry.open(f"sqlite:///{tmp_path / 'home' / 'registry.db'}", actor="tester")
    registry.create_route(SQL)
    folder = make_adapter(tmp_path / "adapter", "pocket")
    yield House(registry, Store(tmp_path / "home" / "store"), make_base(tmp_path / "pocket"), folder)
    registry.close()


def test_published_files_are_the_same_bytes_read_only_and_private(house: House) -> None:
    house.publish()
    names = {file.name for file in house.stored().iterdir()}
    assert names == {*FILES, MANIFEST_FILE}
    for name in FILES:
        assert (house.stored() / name).read_bytes() == (house.folder / name).read_bytes()
    assert {stat.S_IMODE(file.stat().st_mode) for file in house.stored().iterdir()} == {0o400}
    folder = house.stored()
    while folder != house.store.root.parent.parent:
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        folder = folder.parent


def test_everything_is_on_disk_before_the_folder_appears_under_its_name(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real_fsync, real_rename = os.fsync, Path.rename
    before: list[set[str]] = []

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real_fsync(descriptor)

    def rename(self: Path, target: Path) -> Path:
        before.append({Path(name).name for name in synced if Path(name).parent == self})
        assert str(self) in synced
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    house.publish()
    assert before == [{*FILES, MANIFEST_FILE}]
    after = [Path(name) for name in synced]
    assert house.stored().parent in after
    assert house.store.root in after  # the route's own folder was new


def test_a_folder_without_its_manifest_does_not_exist(house: House) -> None:
    digest = house.publish().version.digest
    (house.stored() / MANIFEST_FILE).unlink()
    with pytest.raises(NotFound, match="no stored version"):
        house.store.manifest(SQL, digest)
    with pytest.raises(NotFound):
        house.store.verify(SQL, digest)


def test_a_folder_that_lost_its_manifest_is_whole_again_after_publishing_again(house: House) -> None:
    digest = house.publish().version.digest
    (house.stored() / MANIFEST_FILE).unlink()
    assert not house.publish().created
    house.store.verify(SQL, digest)


def test_the_same_bytes_twice_are_one_version_in_one_place(house: House) -> None:
    first, second = house.publish(), house.publish()
    assert (first.created, second.created) == (True, False)
    assert first.version == second.version
    assert len(list((house.store.root / SQL).iterdir())) == 1


def test_the_same_bytes_in_two_routes_are_two_versions(house: House) -> None:
    house.registry.create_route("other")
    house.publish()
    other = publish_folder(house.registry, house.store, "other", house.folder, house.base)
    assert other.created
    house.store.verify("other", other.version.digest)


def test_publishing_leaves_no_staged_copy_behind(house: House, tmp_path: Path) -> None:
    house.publish()
    with pytest.raises(BadAdapter):
        house.publish(make_adapter(tmp_path / "bad", "pocket", use_dora=True))
    with pytest.raises(BadAdapter):
        house.publish(tmp_path / "missing")
    assert list((house.store.root / ".staging").iterdir()) == []


def test_nothing_is_stored_or_numbered_where_the_check_refuses(house: House, tmp_path: Path) -> None:
    with pytest.raises(BadAdapter):
        house.publish(make_adapter(tmp_path / "bad", "pocket", use_dora=True))
    assert not (house.store.root / SQL).exists()
    assert house.registry.versions() == []


def test_a_folder_without_weights_hears_of_its_config_too(house: House, tmp_path: Path) -> None:
    folder = make_adapter(tmp_path / "bad", "pocket", use_dora=True, bias="all")
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(BadAdapter) as caught:
        house.publish(folder)
    assert len(caught.value.problems) == 3


def test_copies_of_killed_publications_are_removed_after_a_day(house: House) -> None:
    staging = house.store.root / ".staging"
    for name, age in (("old", 25 * 3600), ("fresh", 3600)):
        (staging / name).mkdir(parents=True)
        (staging / name / WEIGHTS_FILE).write_bytes(b"half")
        then = (staging / name).stat().st_mtime - age
        os.utime(staging / name, (then, then))
    house.publish()
    assert [folder.name for folder in staging.iterdir()] == ["fresh"]


def test_other_files_are_left_behind_and_named(house: House) -> None:
    (house.folder / "README.md").write_text("x")
    os.mkfifo(house.folder / "training_args.bin")
    assert house.publish().left_behind == ("README.md", "training_args.bin")
    assert not (house.stored() / "README.md").exists()


def test_a_file_that_becomes_a_pipe_after_the_first_look_is_refused(house: House, tmp_path: Path) -> None:
    (house.folder / WEIGHTS_FILE).unlink()
    os.mkfifo(house.folder / WEIGHTS_FILE)
    with pytest.raises(BadInput, match="not a regular file"), house.store.staged(house.folder):
        pytest.fail("a pipe was staged")


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o600)
    path.write_bytes(change(path.read_bytes()))


FAULTS: list[tuple[str, Callable[[Path], object], str]] = [
    ("altered", lambda at: rewrite(at / WEIGHTS_FILE, lambda b: b[:-1] + bytes([b[-1] ^ 1])), f"{WEIGHTS_FILE} was"),
    ("truncated", lambda at: rewrite(at / WEIGHTS_FILE, lambda b: b[:-1]), f"{WEIGHTS_FILE} was altered"),
    ("config altered", lambda at: rewrite(at / CONFIG_FILE, lambda b: b + b" "), f"{CONFIG_FILE} was altered"),
    ("missing", lambda at: (at / WEIGHTS_FILE).unlink(), f"{WEIGHTS_FILE} is missing"),
    ("manifest cut", lambda at: rewrite(at / MANIFEST_FILE, lambda b: b[:-9]), "manifest unreadable"),
    ("manifest a list", lambda at: rewrite(at / MANIFEST_FILE, lambda b: b"[]"), "manifest unreadable"),
    ("manifest nested", lambda at: rewrite(at / MANIFEST_FILE, lambda b: b"[" * 99_999), "manifest unreadable"),
    ("manifest names a path", lambda at: rewrite(
        at / MANIFEST_FILE, lambda b: b.replace(WEIGHTS_FILE.encode(), b"../../x")), "manifest unreadable"),
    ("file digest edited", lambda at: rewrite(
        at / MANIFEST_FILE, lambda b: b.replace(b'"adapter_config.json": "', b'"adapter_config.json": "0')),
     "do not hash"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "expected"), [one[1:] for one in FAULTS], ids=[one[0] for one in FAULTS])
def test_damage_is_named_stops_promotion_and_is_mended_by_publishing_again(
    house: House, damage: Callable[[Path], object], expected: str
) -> None:
    version = house.publish().version
    damage(house.stored())
    with pytest.raises(StoreCorrupted, match=expected):
        house.store.verify(SQL, version.digest)
    with pytest.raises(StoreCorrupted, match=expected):
        promote(house.registry, house.store, SQL, 1, forced="why")
    assert not house.publish().created
    house.store.verify_version(version)
    assert promote(house.registry, house.store, SQL, 1, forced="why").change.state.live == 1


def test_a_manifest_that_cannot_be_opened_is_named_without_its_path(house: House) -> None:
    version = house.publish().version
    (house.stored() / MANIFEST_FILE).unlink()
    (house.stored() / MANIFEST_FILE).mkdir()
    with pytest.raises(StoreCorrupted, match="manifest unreadable") as refused:
        house.store.verify(SQL, version.digest)
    assert str(house.store.root) not in refused.value.message


def test_two_damaged_files_are_both_named(house: House) -> None:
    version = house.publish().version
    for name in FILES:
        (house.stored() / name).unlink()
    with pytest.raises(StoreCorrupted, match=rf"{CONFIG_FILE} is missing; {WEIGHTS_FILE} is missing"):
        house.store.verify(SQL, version.digest)


def test_a_manifest_that_says_other_things_than_the_registry_stops_promotion(house: House) -> None:
    version = house.publish().version
    edited = manifest_to_json(replace(version.manifest, base_fingerprint="f" * 64))
    rewrite(house.stored() / MANIFEST_FILE, lambda _: json.dumps(edited).encode())
    with pytest.raises(StoreCorrupted, match="sql@1: the stored manifest differs from the registry's"):
        promote(house.registry, house.store, SQL, 1, forced="why")


def test_another_versions_whole_folder_under_a_digest_is_noticed(house: House, tmp_path: Path) -> None:
    first = house.publish().version
    second = house.publish(make_adapter(tmp_path / "second", "pocket", seed=2)).version
    for file in house.stored().iterdir():
        file.unlink()
    for file in house.store.folder(SQL, second.digest).iterdir():
        (house.stored() / file.name).write_bytes(file.read_bytes())
    with pytest.raises(StoreCorrupted, match="the manifest is another version's"):
        house.store.manifest(SQL, first.digest)


def test_what_a_crashed_publication_left_behind_takes_the_next_ones_manifest(house: House) -> None:
    with house.store.staged(house.folder) as staged:  # as if killed before the registry heard of it
        manifest = replace(house.publish(note="second").version.manifest, training={"note": "first"})
        house.store.publish(RouteName("else"), staged, manifest)
    house.registry.create_route("else")
    again = publish_folder(house.registry, house.store, "else", house.folder, house.base)
    assert again.created
    house.store.verify_version(again.version)
    assert again.version.manifest.training == {}


def test_publishing_again_with_other_facts_keeps_the_first_manifest(house: House) -> None:
    first = house.publish(note="first").version
    assert house.publish(note="second").version == first
    assert house.store.manifest(SQL, first.digest) == first.manifest


@pytest.mark.parametrize("route", ["..", "../x", "a/b", "/etc", "", ".staging", "SQL", "a\0b", "x" * 64])
def test_a_route_that_is_a_path_never_reaches_the_disk(house: House, route: str) -> None:
    evidence = make_evidence("a" * 64, "b" * 64)
    for use in (
        lambda: house.store.folder(route, "0" * 64),
        lambda: house.store.manifest(route, "0" * 64),
        lambda: house.store.evidence(route, "0" * 64),
        lambda: house.store.put_evidence(RouteName(route), evidence),
    ):
        with pytest.raises(InvalidName):
            use()


@pytest.mark.parametrize("digest", ["", "..", "0" * 63, "0" * 65, "G" * 64, "../" + "0" * 61, "٠" * 64, "A" * 64])
def test_a_digest_that_is_none_never_reaches_the_disk(house: House, digest: str) -> None:
    for use in (
        lambda: house.store.folder(SQL, digest),
        lambda: house.store.verify(SQL, digest),
        lambda: house.store.evidence(SQL, digest),
        lambda: house.store.classifier_folder(digest),
    ):
        with pytest.raises(BadInput, match="not a sha256"):
            use()


def test_a_manifest_survives_the_way_through_json(house: House) -> None:
    manifest = replace(house.publish().version.manifest, parents=("sql@1",), notes=("n",), data_digests={"x": "y"})
    assert parse_manifest(json.loads(json.dumps(manifest_to_json(manifest)))) == manifest


def test_evidence_survives_the_way_through_the_store(house: House) -> None:
    evidence = make_evidence("a" * 64, "b" * 64, selection={"step": 3})
    digest = house.store.put_evidence(SQL, evidence)
    assert digest == evidence.digest
    assert house.store.evidence(SQL, digest) == evidence


def test_tampered_evidence_is_noticed_and_attaching_it_again_mends_it(house: House) -> None:
    evidence = make_evidence("a" * 64, "b" * 64)
    digest = house.store.put_evidence(SQL, evidence)
    path = house.store.root / SQL / "evidence" / f"{digest}.json"
    rewrite(path, lambda content: content.replace(b'"score":0.0', b'"score":1.0', 1))
    with pytest.raises(StoreCorrupted, match="was altered"):
        house.store.evidence(SQL, digest)
    house.store.put_evidence(SQL, evidence)
    assert house.store.evidence(SQL, digest) == evidence


def test_missing_evidence_is_said_to_be_missing(house: House) -> None:
    with pytest.raises(NotFound, match="no stored evidence"):
        house.store.evidence(SQL, "0" * 64)


def test_evidence_that_could_not_be_read_back_is_not_filed(house: House) -> None:
    twice = evaluation(n=2)
    twice = replace(twice, items=(*twice.items, *twice.items))
    with pytest.raises(BadInput, match="names a row twice"):
        house.store.put_evidence(SQL, make_evidence("a" * 64, "b" * 64, target=twice))
    assert not (house.store.root / SQL).exists()


def test_evidence_of_other_weights_or_another_base_cannot_be_attached(house: House) -> None:
    version = house.publish().version
    for evidence, reason in (
        (make_evidence("a" * 64, house.base.fingerprint), "speaks of weights"),
        (make_evidence(version.digest, "b" * 64), "taken on base"),
    ):
        with pytest.raises(Refused, match=reason):
            attach_evidence(house.registry, house.store, version, evidence)
        with pytest.raises(Refused, match=reason):
            publish_folder(house.registry, house.store, SQL, house.folder, house.base, evidence=evidence)
    assert house.registry.evidence_digests(SQL, 1) == []


def test_attaching_the_same_evidence_twice_is_one_event(house: House) -> None:
    version = house.publish().version
    evidence = make_evidence(version.digest, house.base.fingerprint)
    attach_evidence(house.registry, house.store, version, evidence)
    attach_evidence(house.registry, house.store, version, evidence)
    house.registry.add_evidence(SQL, 1, evidence.digest)  # as a second process does that asked at the same moment
    assert house.registry.evidence_digests(SQL, 1) == [evidence.digest]
    assert [event.kind for event in house.registry.events()].count("evidence_added") == 1


def test_evidence_refused_at_publication_leaves_no_version(house: House) -> None:
    with pytest.raises(Refused):
        publish_folder(
            house.registry, house.store, SQL, house.folder, house.base, evidence=make_evidence("a" * 64, "b" * 64)
        )
    assert house.registry.versions() == []
    assert list((house.store.root / ".staging").iterdir()) == []


def test_an_unknown_route_is_refused_before_anything_is_copied(house: House) -> None:
    with pytest.raises(NotFound, match="no route 'other'"):
        publish_folder(house.registry, house.store, "other", house.folder, house.base)
    assert not house.store.root.exists()


def test_a_stored_classifier_is_found_by_its_digest_and_only_so(house: House, tmp_path: Path) -> None:
    source = tmp_path / "classifier"
    source.mkdir()
    (source / "weights.npy").write_bytes(b"w")
    with house.store.staged(source, ["weights.npy"]) as staged:
        placed = house.store.publish_classifier(staged, "c" * 64)
    assert house.store.classifier_folder("c" * 64) == placed
    assert (placed / "weights.npy").read_bytes() == b"w"
    with pytest.raises(NotFound, match="no stored classifier"):
        house.store.classifier_folder("d" * 64)


def test_a_store_that_cannot_be_made_is_an_os_error_the_command_line_shows(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises((OSError, BranchlineError)), store.staged(tmp_path):
        pytest.fail("staged under a file")
