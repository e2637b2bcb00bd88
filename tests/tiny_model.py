"""A tiny real base and real PEFT adapters, made in a second: random weights, byte-level BPE, a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from adapters.types import AdapterVersion, Manifest, RouteName

CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "down_proj")
_TEXTS = ["the quick brown fox", "select name from users where id = 7", "grüße aus köln", "日本語の文", "émoji 🙂🙃"]


def make_tokenizer(folder: Path, *, vocabulary: int = 400) -> None:
    """A byte-level BPE: its tokens are bytes, so characters outside ASCII take several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXTS * 4, trainer)
    wrapped: Any = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        tokenizer_object=tokenizer, eos_token="<|end|>", pad_token="<|end|>"
    )
    wrapped.chat_template = CHAT_TEMPLATE
    wrapped.save_pretrained(folder)


def make_base(folder: Path, *, seed: int = 0, context_length: int = 32768, **shape: int) -> Path:
    """A Llama with random weights, large enough that its answers vary; `shape` overrides `LlamaConfig` fields.

    The end token's logit is always 0, far from the largest: a greedy answer ends only where it is told to.
    """
    make_tokenizer(folder)
    sizes: dict[str, Any] = {
        "vocab_size": 512,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    config = LlamaConfig(
        **(sizes | shape),
        max_position_embeddings=context_length,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        pad_token_id=0,
        initializer_range=0.3,
    )
    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]  # as above
    with torch.no_grad():
        model.lm_head.weight[0] = 0.0
    model.save_pretrained(folder)
    return folder


def make_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int,
    rank: int = 4,
    targets: Sequence[str] | str = TARGETS,
    scale: float = 0.3,
    **config: Any,
) -> Path:
    """A PEFT LoRA folder for `base` with random A and B (standard deviation `scale`); 0 makes one that does nothing."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = get_peft_model(
        model,
        LoraConfig(
            r=rank, lora_alpha=8, target_modules=targets if isinstance(targets, str) else list(targets), **config
        ),
    )
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=scale)
    wrapped.save_pretrained(str(folder))
    return folder


def make_version(route: str, *, number: int = 1, digest: str = "a" * 64, base_id: str = "tiny") -> AdapterVersion:
    """A version with a made-up manifest: engines read its name only."""
    manifest = Manifest(
        digest=digest,
        files={},
        size_bytes=0,
        base_id=base_id,
        base_fingerprint="f" * 64,
        rank=4,
        alpha=8.0,
        targets=TARGETS,
    )
    return AdapterVersion(RouteName(route), number, manifest, "2026-01-01T00:00:00Z")


@dataclass(frozen=True, slots=True)
class Tiny:
    """A base, three versions of different ranks, and folders that must not load."""

    base: Path
    versions: tuple[tuple[AdapterVersion, Path], ...]
    without_effect: Path
    truncated: Path


def make_tiny(root: Path) -> Tiny:
    base = make_base(root / "tiny")
    versions = tuple(
        (
            make_version(f"route-{rank}", digest=f"{rank:064x}"),
            make_adapter(base, root / f"rank-{rank}", seed=rank, rank=rank),
        )
        for rank in (2, 4, 8)
    )
    truncated = make_adapter(base, root / "truncated", seed=9)
    weights = truncated / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return Tiny(base, versions, make_adapter(base, root / "without-effect", seed=1, scale=0.0), truncated)
