"""The classifier folder: what is saved is what is loaded, and nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.errors import AlreadyExists
from adapters.rows import LabelledText, sha256_json
from router.classify.artifact import FILES, MANIFEST, save_classifier
from router.classify.classifier import Classifier
from router.classify.fit import fit_classifier
from router.classify.head import Head
from router.classify.loader import load_classifier
from router.errors import ClassifierInvalid
from tests.classifier_rows import TALK, Meanings, base_rows, routes_rows

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def fitted() -> Classifier:
    return fit_classifier([*routes_rows(8), *base_rows(), LabelledText("half a pair \ud800 \x00", "sql")])


@pytest.fixture
def folder(fitted: Classifier, tmp_path: Path) -> Path:
    save_classifier(fitted, tmp_path / "saved")
    return tmp_path / "saved"


def rewrite(folder: Path, change: Callable[[Manifest], None]) -> None:
    """Change the manifest and make its own digest fit again, as an attacker would."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest)
    manifest["digest"] = sha256_json({key: value for key, value in manifest.items() if key != "digest"})
    (folder / MANIFEST).write_text(json.dumps(manifest))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Put other bytes into the folder, with size and sha256 that fit."""
    (folder / name).write_bytes(content)
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    rewrite(folder, lambda manifest: manifest["files"].update({name: entry}))


def replace_array(folder: Path, name: str, array: np.ndarray) -> None:
    np.save(folder / "new.npy", array, allow_pickle=True)
    content = (folder / "new.npy").read_bytes()
    (folder / "new.npy").unlink()
    replace_file(folder, name, content)


def test_what_was_saved_is_what_is_loaded(fitted: Classifier, folder: Path) -> None:
    loaded = load_classifier(folder, digest=fitted.digest)
    assert (loaded.digest, loaded.routes, loaded.summary) == (fitted.digest, fitted.routes, fitted.summary)
    for text in [*TALK, "select the age of users", "", "\ud800"]:
        assert loaded.scores(text) == fitted.scores(text)
        assert loaded.explain(text) == fitted.explain(text)


def test_a_classifier_with_an_encoder_is_loaded_with_its_part_of_the_weights(tmp_path: Path) -> None:
    fitted = fit_classifier(routes_rows(8), encoder=Meanings())
    save_classifier(fitted, tmp_path / "saved")
    loaded = load_classifier(tmp_path / "saved", digest=fitted.digest)
    assert loaded.encoder == Meanings.ref
    for text, vector in zip(TALK, Meanings().encode(TALK), strict=True):
        assert loaded.scores(text, vector) == fitted.scores(text, vector)


def test_the_rows_it_was_fitted_on_are_known_after_loading_and_no_text_is_stored(folder: Path) -> None:
    loaded = load_classifier(folder)
    assert all(loaded.has_row(row.label, row.text) for row in base_rows())
    assert not loaded.has_row("sql", TALK[0])
    assert not [text for text in TALK for file in folder.iterdir() if text.encode() in file.read_bytes()]


def test_loaded_weights_are_mapped_and_cannot_be_written(folder: Path) -> None:
    head = load_classifier(folder).head
    assert isinstance(head, Head)
    assert not head.weights.flags.writeable


def test_a_folder_holds_the_named_files_alone_and_leaves_nothing_beside_it(folder: Path) -> None:
    assert sorted(file.name for file in folder.iterdir()) == sorted([*FILES, MANIFEST])
    assert [path.name for path in folder.parent.iterdir()] == ["saved"]


def test_saving_the_same_again_changes_nothing_and_another_is_refused(fitted: Classifier, folder: Path) -> None:
    save_classifier(fitted, folder)
    with pytest.raises(AlreadyExists):
        save_classifier(fit_classifier(routes_rows(4)), folder)


def test_a_failed_save_leaves_nothing(fitted: Classifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, target: Path) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="disk full"):
        save_classifier(fitted, tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


def test_other_files_in_the_folder_are_never_read(fitted: Classifier, folder: Path) -> None:
    (folder / "manifest.json").write_text("{}")
    assert load_classifier(folder).digest == fitted.digest


def test_another_digest_than_the_one_asked_for_is_refused(folder: Path) -> None:
    with pytest.raises(ClassifierInvalid, match="expected 0000"):
        load_classifier(folder, digest="0" * 64)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_missing_or_altered_file_is_refused(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    for content, problem in ((whole[:-1], "bytes, expected"), (whole[:-1] + b"\xff", "sha256")):
        (folder / name).write_bytes(content)
        with pytest.raises(ClassifierInvalid, match=f"{name}.*{problem}"):
            load_classifier(folder)
    (folder / name).unlink()
    with pytest.raises(ClassifierInvalid, match=f"{name} cannot be read"):
        load_classifier(folder)


def test_every_problem_is_listed_at_once(folder: Path) -> None:
    for name in FILES:
        (folder / name).write_bytes(b"")
    with pytest.raises(ClassifierInvalid) as refused:
        load_classifier(folder)
    assert all(name in refused.value.message for name in FILES)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_link_out_of_the_folder_is_refused(folder: Path, name: str) -> None:
    shutil.move(folder / name, folder.parent / "elsewhere")
    (folder / name).symlink_to(folder.parent / "elsewhere")
    with pytest.raises(ClassifierInvalid, match=f"{name} is a link"):
        load_classifier(folder)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["weights.npy", "idf.npy"])
def test_arrays_that_are_not_finite_are_refused(folder: Path, name: str, bad: float) -> None:
    array = np.array(np.load(folder / name))
    array.flat[0] = bad
    replace_array(folder, name, array)
    with pytest.raises(ClassifierInvalid, match=f"{name} holds NaN or Inf"):
        load_classifier(folder)


def test_arrays_of_another_shape_or_type_are_refused(folder: Path) -> None:
    weights = np.array(np.load(folder / "weights.npy"))
    for other in (weights[:-1], weights.T, weights.astype(np.float64), weights.astype(">f4")):
        replace_array(folder, "weights.npy", other)
        with pytest.raises(ClassifierInvalid, match=r"weights\.npy is"):
            load_classifier(folder)


class Bomb:
    """Unpickling it would raise."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return exec, ("raise SystemExit('unpickled')",)


def test_keys_of_rows_out_of_order_are_refused(folder: Path) -> None:
    replace_array(folder, "rows.npy", np.load(folder / "rows.npy")[::-1])
    with pytest.raises(ClassifierInvalid, match=r"rows\.npy is not ascending"):
        load_classifier(folder)


def test_objects_and_pickles_are_refused_without_being_opened(folder: Path) -> None:
    replace_array(folder, "weights.npy", np.array([Bomb()], dtype=object))
    with pytest.raises(ClassifierInvalid, match=r"weights\.npy is"):
        load_classifier(folder)
    replace_file(folder, "weights.npy", pickle.dumps(Bomb()))
    with pytest.raises(ClassifierInvalid, match="no plain array"):
        load_classifier(folder)


HEADERS = (  # each made numpy.load raise something of its own
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (5L,) '''",
    b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999999,), }",
    b"{'descr': [], 'fortran_order': False, 'shape': (5,), }",
    b"{'descr': ('<f4',), 'fortran_order': False, 'shape': (5,), }",
    b"{[]: 1}",
    b"((((",
    b"'" * 3,
)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("name", ["weights.npy", "idf.npy"])
def test_a_header_that_is_not_what_we_write_is_refused(folder: Path, name: str, header: bytes) -> None:
    for text in (header, header + b"\n"):
        replace_file(folder, name, b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64)
        with pytest.raises(ClassifierInvalid, match=name):
            load_classifier(folder)


@pytest.mark.parametrize("content", [b"PK\x03\x04" + b"x" * 200, b"\x93NUMPY\x01\x00", b"\x93NUMPY\x01\x00\xff\xff"])
def test_an_archive_or_a_torn_array_is_refused(folder: Path, content: bytes) -> None:
    replace_file(folder, "idf.npy", content)
    with pytest.raises(ClassifierInvalid, match=r"idf\.npy is no plain array"):
        load_classifier(folder)


@pytest.mark.parametrize("more", [-4, 4])
def test_an_array_with_fewer_or_more_numbers_than_its_header_says_is_refused(folder: Path, more: int) -> None:
    content = (folder / "weights.npy").read_bytes()
    replace_file(folder, "weights.npy", content[:more] if more < 0 else content + b"\0" * more)
    with pytest.raises(ClassifierInvalid, match=r"weights\.npy is an array of"):
        load_classifier(folder)


@pytest.mark.parametrize("weight", [3e38, -3e38, 2e6])
@pytest.mark.parametrize("name", ["weights.npy", "dense.npy"])
def test_weights_whose_logits_could_be_infinite_are_refused(tmp_path: Path, name: str, weight: float) -> None:
    save_classifier(fit_classifier(routes_rows(8), encoder=Meanings()), tmp_path / "saved")
    array = np.array(np.load(tmp_path / "saved" / name))
    array.flat[-1] = weight
    replace_array(tmp_path / "saved", name, array)
    with pytest.raises(ClassifierInvalid, match=f"{name} holds weights beyond"):
        load_classifier(tmp_path / "saved")


@pytest.mark.parametrize("value", [0.0, -1.0, 1e-200, 1e200])
def test_an_idf_that_would_make_a_request_fail_is_refused(folder: Path, value: float) -> None:
    idf = np.array(np.load(folder / "idf.npy"))
    replace_array(folder, "idf.npy", np.full_like(idf, value))
    with pytest.raises(ClassifierInvalid, match=r"idf\.npy holds numbers outside"):
        load_classifier(folder)
    replace_array(folder, "idf.npy", idf)
    rewrite(folder, lambda manifest: manifest.update(unseen_idf=value))
    with pytest.raises(ClassifierInvalid, match=r"unseen_idf .* is outside"):
        load_classifier(folder)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(folder: Path, name: str) -> None:
    if name != MANIFEST:
        replace_file(folder, name, b"")  # a pipe has no bytes either
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ClassifierInvalid, match=f"{name} is no file"):
        load_classifier(folder)


def test_a_huge_header_or_shape_is_refused(folder: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"
    for claimed in (header % (b"1" * 5000), header % b"1000000000000"):
        text = claimed + b"\n"
        replace_file(folder, "weights.npy", b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text)
        with pytest.raises(ClassifierInvalid, match="no plain array"):
            load_classifier(folder)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("schema", 1, "schema is 1"),
        ("text_rule", "first user turn", "text_rule"),
        ("labels", ["sql", "booking"], "labels"),
        ("labels", ["base"], "labels"),
        ("labels", ["../sql", "base"], "labels"),
        ("temperature", 0, "temperature"),
        ("temperature", "1", "temperature"),
        ("temperature", 1e-300, "temperature"),
        ("threshold", 10**400, "threshold"),
        ("threshold", None, "threshold"),
        ("rows", -1, "rows"),
        ("rows", 2**62, "rows is"),
        ("rows", 2**40, r"rows\.npy is"),
        ("rows", 10**400, "rows is"),
        ("kept", 10**400, "kept is"),
        ("confidence", {"temperature": 0, "exponent": 1}, "confidence"),
        ("confidence", {"temperature": 1, "exponent": None}, "confidence"),
        ("own_thresholds", {"base": 1}, "own_thresholds"),
        ("own_thresholds", {"sql": "1"}, "own_thresholds"),
        ("encoder", "meanings", "encoder"),
        ("encoder", {**asdict(Meanings.ref), "precision": "int4"}, "encoder"),
        ("encoder", {**asdict(Meanings.ref), "dimension": 0}, "encoder"),
        ("encoder", {**asdict(Meanings.ref), "name": 7}, "encoder"),
        ("encoder", {**asdict(Meanings.ref), "dimension": True}, "encoder"),
        ("encoder", {**asdict(Meanings.ref), "dimension": 2**55}, "encoder"),
        ("encoder", {**asdict(Meanings.ref), "max_tokens": 2**70}, "encoder"),
        *(
            ("encoder", {**asdict(Meanings.ref), "digest": digest}, "encoder")
            for digest in ("../../../etc", "/etc", "a\0b", "A" * 64, "0" * 63, "0" * 64 + "\n")
        ),
        ("encoder", asdict(Meanings.ref), "dense.npy is"),
        ("unseen_idf", True, "unseen_idf"),
        ("score", "luck", "score"),
        ("summary", [], "summary"),
        ("files", {"../weights.npy": {"bytes": 1, "sha256": ""}}, "files"),
    ],
)
def test_a_manifest_with_a_wrong_field_is_refused(folder: Path, key: str, value: object, problem: str) -> None:
    rewrite(folder, lambda manifest: manifest.update({key: value}))
    with pytest.raises(ClassifierInvalid, match=problem):
        load_classifier(folder)


def test_a_manifest_changed_without_its_digest_is_refused(folder: Path) -> None:
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**manifest, "threshold": -1000}))
    with pytest.raises(ClassifierInvalid, match="does not match its digest"):
        load_classifier(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"threshold": NaN}', b'"\\ud800"'])
def test_a_manifest_that_is_no_json_object_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST).write_bytes(content)
    with pytest.raises(ClassifierInvalid):
        load_classifier(folder)


@pytest.mark.parametrize(
    "content", [b"[]", b'{"words": [1], "characters": []}', b'{"words": ["a", "a"], "characters": []}']
)
def test_a_vocabulary_that_is_no_two_lists_of_terms_is_refused(folder: Path, content: bytes) -> None:
    replace_file(folder, "vocabulary.json", content)
    with pytest.raises(ClassifierInvalid, match=r"vocabulary\.json"):
        load_classifier(folder)


def test_a_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ClassifierInvalid, match="no classifier there"):
        load_classifier(tmp_path / "nothing")


ANY_BYTES = st.builds(
    bytes.__add__, st.sampled_from([b"", b"\x93NUMPY\x01\x00", b"PK\x03\x04"]), st.binary(max_size=200)
)


@given(st.sampled_from([*FILES, MANIFEST]), ANY_BYTES, st.booleans())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_in_any_file_do_more_than_be_refused(folder: Path, name: str, content: bytes, signed: bool) -> None:
    whole = {file: (folder / file).read_bytes() for file in [*FILES, MANIFEST]}
    if signed and name != MANIFEST:
        replace_file(folder, name, content)
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ClassifierInvalid):
        load_classifier(folder)
    for file, before in whole.items():
        (folder / file).write_bytes(before)
