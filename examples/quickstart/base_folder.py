"""The base folder on disk: model shape, weights in bf16, tokenizer, and DATA.json with the digests of everything it
was made from.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from .tokenizer import END, PAD, token_id, wrap_tokenizer


@dataclass(frozen=True)
class TrainingRecord:
    """What DATA.json says about how the weights came to be."""

    settings: dict[str, Any]
    history: list[dict[str, Any]]
    progress: dict[str, Any]
    loss: float
    held_out_exact_match: float
    conversation_digest: str
    chunk_digests: list[str]
    book_digests: dict[str, str]
    word_list_digests: dict[str, str]


def build_model(vocabulary: int) -> LlamaForCausalLM:
    """A new Llama of 5.3 million parameters with tied embeddings, float32."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=64,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    model: LlamaForCausalLM = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
    return model


def digest_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file."""
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object, keys in the given order."""
    path.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def make_tokenizer_portable(path: Path) -> None:
    """Name the tokenizer's class and special tokens as transformers 4 and 5 both read them."""
    config = read_json(path)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config["additional_special_tokens"] = config.pop("extra_special_tokens")
    config.pop("backend", None)
    write_json(path, config)


def write_base(folder: Path, model: LlamaForCausalLM, tokenizer: Tokenizer, record: TrainingRecord) -> None:
    """Write weights, tokenizer, generation settings and DATA.json."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = build_model(tokenizer.get_vocab_size())
    saved.load_state_dict(model.state_dict())
    torch.nn.Module.to(saved, torch.bfloat16)
    end, pad = token_id(tokenizer, END), token_id(tokenizer, PAD)
    saved.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        eos_token_id=end, pad_token_id=pad, do_sample=False, max_new_tokens=128
    )
    saved.save_pretrained(folder)
    wrap_tokenizer(tokenizer).save_pretrained(folder)
    make_tokenizer_portable(folder / "tokenizer_config.json")
    origin = {
        "made_by": "python -m examples.quickstart.make_base",
        "torch": torch.__version__,
        "hours": round(record.progress["seconds"] / 3600, 3),
    }
    weights = {
        "model.safetensors": digest_file(folder / "model.safetensors"),
        "tokenizer.json": digest_file(folder / "tokenizer.json"),
    }
    write_json(folder / "DATA.json", {**origin, **asdict(record), "files": weights})
