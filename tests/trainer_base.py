"""What the trainer's tests stand on: a tiny real base that learns in seconds, and rows for it to learn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from adapters.base import find_base
from adapters.rows import Example, Message
from tests.tiny_model import make_tokenizer
from trainer.data import Encoded, encode
from trainer.model import LoadedBase, LoraShape, add_lora, load_base

SHAPE = LoraShape(rank=4, alpha=8, targets=("all-linear",))
WORDS = ("red", "blue", "green", "grey", "black", "white", "pink", "brown")


def make_trainable_base(folder: Path) -> Path:
    """A Llama of 60,000 random weights with the tiny tokenizer and chat template."""
    make_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=400,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.15,
    )
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # transformers leaves it so
    model.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[tuple[str, str]]) -> Path:
    path.write_text("".join(json.dumps({"input": one, "output": two}) + "\n" for one, two in rows), encoding="utf-8")
    return path


def colour_rows(count: int, *, start: int = 0) -> list[tuple[str, str]]:
    """Questions that differ by a number, all with the same answer: learnable in a few steps."""
    return [(f"{WORDS[number % 8]} {number}?", "yes") for number in range(start, start + count)]


def varied_rows(count: int) -> list[tuple[str, str]]:
    """Prompts and answers of many lengths."""
    return [
        (f"say {WORDS[number % 8]} " * (1 + number % 5), f"{WORDS[number % 7]} " * (1 + number % 4))
        for number in range(count)
    ]


@dataclass(frozen=True, slots=True)
class Files:
    """Files of a small task whose answer is always `yes`, and a guardrail that asks something else."""

    base: Path
    data: Path
    eval: Path
    guardrail: Path

    @classmethod
    def found(cls, root: Path) -> Files:
        """What `make_files` made below `root`."""
        return cls(root / "tiny", root / "train.jsonl", root / "eval.jsonl", root / "general.jsonl")

    @property
    def arguments(self) -> list[str]:
        return [
            *("--base", str(self.base), "--data", str(self.data), "--eval", str(self.eval)),
            *("--guardrail", str(self.guardrail), "--threads", "1"),
        ]

    @property
    def values(self) -> dict[str, object]:
        files = {"base": str(self.base), "data": self.data, "eval": self.eval, "guardrails": [self.guardrail]}
        return {
            "name": "colour",
            **files,
            "lr": 0.02,
            "rank": 4,
            "alpha": 8,
            "checkpoints": 2,
            "max_steps": 12,
            "epochs": 100,
        }


def make_files(root: Path) -> Files:
    return Files(
        make_trainable_base(root / "tiny"),
        write_rows(root / "train.jsonl", colour_rows(64)),
        write_rows(root / "eval.jsonl", colour_rows(40, start=1000)),
        write_rows(root / "general.jsonl", [(f"repeat {number}", f"{number}") for number in range(40)]),
    )


def loaded_base(folder: Path) -> LoadedBase:
    return load_base(find_base(str(folder)))


def lora_model(folder: Path, *, seed: int = 1, effect: float = 0.0) -> tuple[LoadedBase, Any]:
    """The base with a fresh adapter; with `effect` > 0 its B is random with that standard deviation."""
    loaded = loaded_base(folder)
    torch.manual_seed(seed)
    model: Any = add_lora(loaded, SHAPE)
    for name, parameter in model.named_parameters():
        if effect and "lora_B" in name:
            torch.nn.init.normal_(parameter, std=effect)
    return loaded, model


def encoded(loaded: LoadedBase, rows: Sequence[tuple[str, str]]) -> list[Encoded]:
    examples = [Example((Message("user", one),), two) for one, two in rows]
    return encode(loaded.tokenizer, examples, loaded.end_tokens)
