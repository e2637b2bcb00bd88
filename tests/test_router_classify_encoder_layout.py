"""An encoder's folder is read as sentence-transformers writes it; what cannot be run is refused, all of it at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from router.classify.encoder.layout import MAX_TOKENS, read_layout
from router.errors import EncoderUnavailable
from tests.encoder_folders import packaged_minilm, write_layout


def rewrite(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def test_the_packaged_minilm_is_read_as_its_card_says() -> None:
    """all-MiniLM-L6-v2: 384 dimensions, mean pooling, cut at 256 tokens (sentence_bert_config.json)."""
    found = read_layout(str(packaged_minilm()))
    assert (found.dimension, found.pooling, found.max_tokens, found.pad_token) == (384, "mean", 256, 0)


@pytest.mark.parametrize(
    "config", [{"pooling_mode_cls_token": True}, {"pooling_mode": "cls"}, {"pooling_mode": ["cls"]}]
)
def test_both_spellings_of_the_pooling_are_read(tmp_path: Path, config: dict[str, object]) -> None:
    rewrite(write_layout(tmp_path) / "1_Pooling" / "config.json", config)
    assert read_layout(str(tmp_path)).pooling == "cls"


def test_a_plain_transformer_is_pooled_by_the_mean_and_cut_where_it_must_be(tmp_path: Path) -> None:
    folder = write_layout(tmp_path)
    for name in ("modules.json", "sentence_bert_config.json"):
        (folder / name).unlink()
    assert (read_layout(str(folder)).pooling, read_layout(str(folder)).max_tokens) == ("mean", 64)
    rewrite(folder / "config.json", {"hidden_size": 32, "max_position_embeddings": 8192})
    assert read_layout(str(folder)).max_tokens == MAX_TOKENS


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "model.safetensors", "sentence_bert_config.json", "1_Pooling/config.json"]
)
def test_the_digest_names_every_file_that_shapes_a_vector(tmp_path: Path, name: str) -> None:
    before = read_layout(str(write_layout(tmp_path))).digest
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b" ")
    assert read_layout(str(tmp_path)).digest != before


def test_the_digest_does_not_depend_on_where_the_folder_lies(tmp_path: Path) -> None:
    here, there = write_layout(tmp_path / "here"), write_layout(tmp_path / "there")
    (there / "README.md").write_text("shapes no vector")
    assert read_layout(str(here)).digest == read_layout(str(there)).digest


def test_a_default_prompt_stands_before_every_text(tmp_path: Path) -> None:
    prompts = {"prompts": {"query": "query: ", "passage": "passage: "}, "default_prompt_name": "query"}
    rewrite(write_layout(tmp_path) / "config_sentence_transformers.json", prompts)
    assert read_layout(str(tmp_path)).prompt == "query: "


def test_every_problem_of_a_folder_is_named_at_once(tmp_path: Path) -> None:
    folder = write_layout(tmp_path, pooling="max")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "tokenizer.json").unlink()
    rewrite(folder / "config.json", {})
    modules = json.loads((folder / "modules.json").read_text())
    rewrite(folder / "modules.json", [*modules, {"path": "3_Dense", "type": "sentence_transformers.models.Dense"}])
    with pytest.raises(EncoderUnavailable) as refused:
        read_layout(str(folder))
    for problem in ("hidden_size is None", "no .safetensors", "no tokenizer.json", "names Dense", "pools by"):
        assert problem in refused.value.message
    assert str(tmp_path) not in refused.value.message


@pytest.mark.parametrize("path", ["../outside", "/etc"])
def test_a_pooling_folder_outside_of_the_encoders_is_refused(tmp_path: Path, path: str) -> None:
    folder = write_layout(tmp_path)
    rewrite(folder / "modules.json", [{"path": path, "type": "sentence_transformers.models.Pooling"}])
    with pytest.raises(EncoderUnavailable, match="no folder for Pooling"):
        read_layout(str(folder))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_a_config_that_is_no_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (write_layout(tmp_path) / "config.json").write_bytes(content)
    with pytest.raises(EncoderUnavailable, match=r"config\.json"):
        read_layout(str(tmp_path))


def test_what_is_neither_a_folder_nor_a_hub_id_is_refused_without_its_path() -> None:
    with pytest.raises(EncoderUnavailable, match="'missing' is no folder") as refused:
        read_layout("/somewhere/private/missing")
    assert "private" not in refused.value.message


def test_a_hub_id_that_is_not_at_hand_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(EncoderUnavailable, match="neither a folder nor in the hub's cache"):
        read_layout("nobody/nothing")
