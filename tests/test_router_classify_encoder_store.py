"""A tuned encoder is kept in the store beside its classifier: a gateway elsewhere needs nothing but the store."""

from __future__ import annotations

import json
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from adapters.home import Home
from adapters.remote import Remote
from adapters.store import Store
from router.classifier_cli.group import classifier
from router.classify.encoder.cache import keep_packed, tuned_layout
from router.classify.encoder.layout import Layout, read_layout
from router.classify.encoder.opening import encoder_cache, find_encoder, store_tuned
from router.classify.encoder.packing import PACKED, pack_encoder
from router.classify.encoding import EncoderRef
from router.errors import EncoderUnavailable
from tests.classifier_rows import base_rows, routes_rows
from tests.encoder_folders import write_tiny_encoder
from tests.gateway_process import START_SECONDS, branchline, serving

TEXTS = ("select the price of albums", "book a taxi tonight", "hello")


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_encoder(tmp_path / "tiny")


@pytest.fixture
def packed(tiny: Path, tmp_path: Path) -> Path:
    pack_encoder(tiny, tmp_path / PACKED)
    return tmp_path / PACKED


def tuned_in(cache: Path, tiny: Path) -> Layout:
    """The tiny encoder, where a tuned one would lie."""
    digest = read_layout(str(tiny)).digest
    shutil.copytree(tiny, cache / digest / "tiny-tuned")
    found = tuned_layout(digest, cache)
    assert found is not None
    return found


def test_what_is_packed_is_unpacked_as_it_was_and_the_same_folder_gives_the_same_bytes(
    tiny: Path, packed: Path, tmp_path: Path
) -> None:
    (tiny / "pytorch_model.bin").write_bytes(b"never opened")
    pack_encoder(tiny, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == packed.read_bytes()
    digest = read_layout(str(tiny)).digest
    found = keep_packed(digest, packed, tmp_path / "cache")
    assert (found.digest, found.name, found.dimension) == (digest, "tiny", 32)
    assert not list((tmp_path / "cache").glob(".new-*"))


def test_the_folder_of_an_encoder_may_be_called_anything(tiny: Path, tmp_path: Path) -> None:
    odd = tiny.rename(tmp_path / "mein Encoder (v2), größer")
    pack_encoder(odd, tmp_path / PACKED)
    digest = read_layout(str(odd)).digest
    assert keep_packed(digest, tmp_path / PACKED, tmp_path / "cache").name == odd.name


def _outside(archive: zipfile.ZipFile) -> None:
    archive.writestr("../evil/config.json", "{}")


def _inside_out(archive: zipfile.ZipFile) -> None:
    archive.writestr("tiny/../../config.json", "{}")


def _deep(archive: zipfile.ZipFile) -> None:
    archive.writestr("tiny/1/2/config.json", "{}")


def _absolute(archive: zipfile.ZipFile) -> None:
    archive.writestr("/evil.json", "{}")


def _bomb(archive: zipfile.ZipFile) -> None:
    archive.writestr("tiny/model.safetensors", b"\0" * 1_000_000, zipfile.ZIP_DEFLATED)


def _two_folders(archive: zipfile.ZipFile) -> None:
    archive.writestr("tiny/config.json", "{}")
    archive.writestr("other/config.json", "{}")


def _nothing(_: zipfile.ZipFile) -> None:
    pass


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (_outside, "it holds '../evil/config.json'"),
        (_inside_out, "it holds 'tiny/../../config.json'"),
        (_deep, "it holds 'tiny/1/2/config.json'"),
        (_absolute, "it holds '/evil.json'"),
        (_bomb, "it is compressed"),
        (_two_folders, "it is not one folder"),
        (_nothing, "it is not one folder"),
    ],
)
def test_an_archive_that_was_not_packed_here_is_refused_and_nothing_is_kept(
    tmp_path: Path, write: Callable[[zipfile.ZipFile], None], problem: str
) -> None:
    with zipfile.ZipFile(tmp_path / PACKED, "w") as archive:
        write(archive)
    with pytest.raises(EncoderUnavailable) as refused:
        keep_packed("0" * 64, tmp_path / PACKED, tmp_path / "cache")
    assert problem in refused.value.message
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_an_archive_cut_short_or_of_another_encoder_is_refused(tiny: Path, packed: Path, tmp_path: Path) -> None:
    digest = read_layout(str(tiny)).digest
    with pytest.raises(EncoderUnavailable, match="is another one"):
        keep_packed("0" * 64, packed, tmp_path / "cache")
    packed.write_bytes(packed.read_bytes()[:-100])
    with pytest.raises(EncoderUnavailable, match="is no archive"):
        keep_packed(digest, packed, tmp_path / "cache")


def test_a_tuned_encoder_is_found_through_the_store_where_no_cache_and_no_source_has_it(
    tiny: Path, tmp_path: Path
) -> None:
    here, url = Home.at(tmp_path / "here"), (tmp_path / "remote").as_uri()
    layout = tuned_in(encoder_cache(here), tiny)
    ref = layout.ref("fp32")
    store_tuned(ref, encoder_cache(here), Store(here.store, Remote(url)))
    there = Home.at(tmp_path / "there", store_url=url)
    expected = find_encoder(ref, None, encoder_cache(here)).encode(TEXTS)
    found = find_encoder(ref, None, encoder_cache(there), open_store=there.open_store)
    np.testing.assert_array_equal(found.encode(TEXTS), expected)
    shutil.rmtree(encoder_cache(there))  # a cache may be emptied
    (stored,) = there.store.rglob(PACKED)
    stored.chmod(0o600)
    stored.write_bytes(b"damaged")  # fetched again then
    assert find_encoder(ref, None, encoder_cache(there), open_store=there.open_store).ref == ref


def test_an_encoder_that_the_store_lacks_is_refused_as_without_a_store(tiny: Path, tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    ref = EncoderRef("elsewhere", "1" * 64, "fp32", 32, 24)
    with pytest.raises(EncoderUnavailable, match="no encoder is given"):
        find_encoder(ref, None, encoder_cache(home), open_store=home.open_store)
    with pytest.raises(EncoderUnavailable, match="the one given is tiny"):
        find_encoder(ref, str(tiny), encoder_cache(home), open_store=home.open_store)


def test_a_stored_encoder_that_stays_damaged_keeps_the_classifier_out(tiny: Path, tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    ref = tuned_in(encoder_cache(home), tiny).ref("fp32")
    store_tuned(ref, encoder_cache(home), home.open_store())
    (stored,) = home.store.rglob(PACKED)
    stored.chmod(0o600)
    stored.write_bytes(b"damaged")
    shutil.rmtree(encoder_cache(home))
    with pytest.raises(EncoderUnavailable, match="is damaged"):
        find_encoder(ref, None, encoder_cache(home), open_store=home.open_store)


def test_an_encoder_that_was_not_tuned_is_not_stored(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    store_tuned(EncoderRef("minilm", "1" * 64, "fp32", 32, 24), encoder_cache(home), home.open_store())
    store_tuned(None, encoder_cache(home), home.open_store())
    assert not list(home.store.rglob(PACKED))


def test_a_gateway_elsewhere_serves_a_classifier_whose_encoder_was_tuned_here(tiny: Path, tmp_path: Path) -> None:
    """The registry and the store are all that they share."""
    shared = ["--registry", f"sqlite:///{tmp_path / 'registry.db'}", "--store", (tmp_path / "remote").as_uri()]
    here, there, rows = tmp_path / "here", tmp_path / "there", [*routes_rows(12), *base_rows()]
    for route in ("sql", "booking", "regex"):
        branchline("route", "create", route, *shared, home=here)
    examples = tmp_path / "rows.jsonl"
    examples.write_text("".join(json.dumps({"label": row.label, "text": row.text}) + "\n" for row in rows))
    fit = ["fit", "--examples", str(examples), "--encoder", str(tiny), "--finetune", "--precision", "fp32", "--promote"]
    done = CliRunner().invoke(classifier, [*fit, *shared, "--home", str(here)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    variables = {"BRANCHLINE_REGISTRY": shared[1], "BRANCHLINE_STORE": shared[3]}
    with serving(there, "--backend", "echo", "--base", "tiny", variables=variables) as gateway:
        answer = _decided(gateway.url)
        ready = httpx.get(f"{gateway.url}/ready")
    assert (ready.status_code, ready.json()["problems"]["classifier"]) == (200, None)
    assert float(answer.headers["x-branchline-confidence"]) > 0
    assert [path.name for path in (there / "encoders").glob("*/*")] == ["tiny-tuned"]


def _decided(url: str) -> httpx.Response:
    """An answer once a classifier decides: this one's encoder is fetched and exported first."""
    body = {"model": "auto", "messages": [{"role": "user", "content": "select the price of albums"}]}
    deadline = time.monotonic() + START_SECONDS
    while True:
        answer = httpx.post(f"{url}/v1/chat/completions", json=body)
        if answer.headers["x-branchline-reason"] != "no_classifier" or time.monotonic() > deadline:
            return answer
        time.sleep(0.2)
