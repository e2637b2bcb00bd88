"""The base's fingerprint: what moves it, and that its cache never serves a stale one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from adapters import base as base_module
from adapters.base import SAMPLE_BYTES, find_base, template_digest
from adapters.errors import BadInput, NotFound
from tests.adapter_folders import TEMPLATE, container, make_base


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_base(tmp_path / "pocket").folder


def test_a_base_is_named_after_its_folder_and_knows_its_template(folder: Path) -> None:
    found = find_base(str(folder))
    assert (found.id, found.folder) == ("pocket", folder)
    assert found.chat_template_digest == template_digest(TEMPLATE)


def test_the_fingerprint_does_not_depend_on_where_the_folder_lies(folder: Path, tmp_path: Path) -> None:
    moved = folder.rename(tmp_path / "elsewhere")
    assert find_base(str(moved)).fingerprint == make_base(tmp_path / "again").fingerprint


def grow(folder: Path, middle: bytes) -> None:
    """Give the base one shard of 1 MiB whose middle holds `middle`."""
    size = 1024 * 1024
    data = bytearray(size)
    data[size // 2 : size // 2 + len(middle)] = middle
    header = {"big.weight": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}
    (folder / "model.safetensors").write_bytes(container(header, bytes(data)))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"model_type": "other"}'),
        ("tokenizer.json", b"{}"),
        ("tokenizer_config.json", b"{}"),
        ("chat_template.jinja", b"other"),
        ("special_tokens_map.json", b"{}"),
        ("tokenizer.model", b"x"),
        ("vocab.json", b"{}"),
        ("merges.txt", b"a b"),
        ("extra.safetensors", container({})),
    ],
)
def test_the_fingerprint_moves_with_each_file_that_makes_the_model(folder: Path, name: str, content: bytes) -> None:
    before = find_base(str(folder)).fingerprint
    (folder / name).write_bytes(content)
    assert find_base(str(folder)).fingerprint != before


def test_the_fingerprint_does_not_move_with_other_files(folder: Path) -> None:
    before = find_base(str(folder)).fingerprint
    (folder / "README.md").write_text("x")
    (folder / "generation_config.json").write_text("{}")
    assert find_base(str(folder)).fingerprint == before


def test_the_fingerprint_moves_with_the_sampled_weights_the_header_and_the_size(folder: Path) -> None:
    found = set()
    grow(folder, b"")
    found.add(find_base(str(folder)).fingerprint)
    grow(folder, b"\1")
    found.add(find_base(str(folder)).fingerprint)
    shard = folder / "model.safetensors"
    shard.write_bytes(shard.read_bytes().replace(b"big.weight", b"big.w3ight"))
    found.add(find_base(str(folder)).fingerprint)
    shard.write_bytes(shard.read_bytes() + b"\0")
    found.add(find_base(str(folder)).fingerprint)
    assert len(found) == 4


def test_the_sample_is_read_from_the_middle_and_is_no_larger_than_said(folder: Path) -> None:
    grow(folder, b"")
    before = find_base(str(folder)).fingerprint
    grow(folder, b"\0" * (SAMPLE_BYTES // 2) + b"\1")  # the first byte beyond the sample
    assert find_base(str(folder)).fingerprint == before
    grow(folder, b"\0" * (SAMPLE_BYTES // 2 - 1) + b"\1")
    assert find_base(str(folder)).fingerprint != before


def test_the_cache_spares_reading_and_is_void_as_soon_as_a_file_changes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "home" / "fingerprints.json"
    first = find_base(str(folder), cache=cache).fingerprint
    reads: list[Path] = []
    real = base_module._digest_of

    def digest_of(file: Path) -> str:
        reads.append(file)
        return real(file)

    monkeypatch.setattr(base_module, "_digest_of", digest_of)
    assert find_base(str(folder), cache=cache).fingerprint == first
    assert reads == []
    config = folder / "config.json"
    config.write_bytes(config.read_bytes()[::-1])  # the same size
    os.utime(config, ns=(0, config.stat().st_mtime_ns + 1))
    assert find_base(str(folder), cache=cache).fingerprint != first
    assert reads


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"x": 1}', b"\xff"])
def test_a_broken_cache_only_costs_time(folder: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "fingerprints.json"
    cache.write_bytes(content)
    assert find_base(str(folder), cache=cache) == find_base(str(folder))
    assert len(json.loads(cache.read_text())) >= 1


def test_a_cache_that_cannot_be_written_only_costs_time(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert find_base(str(folder), cache=tmp_path / "file" / "cache.json") == find_base(str(folder))


def test_what_is_no_base_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"neither a folder nor in the local hub cache|no base folder"):
        find_base(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match="empty is not a model folder"):
        find_base(str(tmp_path / "empty"))


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 16, b"\x01\0\0\0\0\0\0\0"])
def test_a_shard_that_is_no_safetensors_file_is_refused(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(BadInput, match="is not a safetensors file"):
        find_base(str(folder))


@pytest.mark.parametrize(
    ("name", "content"), [("chat_template.jinja", b"\xff"), ("tokenizer_config.json", b"[" * 9999)]
)
def test_a_template_that_cannot_be_read_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(BadInput, match="the chat template of pocket cannot be read"):
        find_base(str(folder))
