"""The base in memory: model, tokenizer and what the decoder must know of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache
from transformers.utils import logging as transformers_logging

from ...errors import EngineFailed
from ...sampling import Defaults
from .cache import SlotCache
from .lora import Adapter, Binding, LoraLayers

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Engine:
    """A loaded base. `context_length` is in tokens; forwards belong to one thread."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    lora: LoraLayers
    output_layer: str | None
    end_tokens: frozenset[int]
    context_length: int
    vocabulary: int
    defaults: Defaults
    device: torch.device
    dtype: torch.dtype

    def decode(self, ids: list[int]) -> str:
        """Text of `ids` without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def prefill(self, ids: Sequence[int], adapter: Adapter | None) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits [1, vocabulary] after a prompt, and its keys and values per layer."""
        past: Any = DynamicCache()
        with self.lora.bound(self.lora.bind([adapter])):
            output = self.model(
                input_ids=torch.tensor([list(ids)], device=self.device),
                position_ids=torch.arange(len(ids), device=self.device)[None],
                past_key_values=past,
                use_cache=True,
                logits_to_keep=1,
            )
        return output.logits[:, -1].float(), [(layer.keys, layer.values) for layer in past.layers]

    def step(self, tokens: Sequence[int], cache: SlotCache, binding: Binding) -> Tensor:
        """Logits [rows, vocabulary] after one more token per slot of `cache`."""
        positions, visible = cache.next_step()
        with self.lora.bound(binding):
            output = self.model(
                input_ids=torch.tensor(tokens, device=self.device)[:, None],
                position_ids=positions,
                attention_mask=visible,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: Tensor = output.logits[:, -1].float()
        return logits


def load_engine(folder: Path, device_name: str | None) -> Engine:
    """Load the base in `folder`: bfloat16 on a GPU, float32 on the CPU. Raises `EngineFailed`."""
    device = torch.device(device_name or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation="sdpa", local_files_only=True, use_safetensors=True
        )
    except Exception as error:  # the libraries raise whatever they like for a folder they cannot read
        raise EngineFailed(f"the base cannot be loaded: {type(error).__name__}: {error}") from error
    context_length = _context_length(model.config.get_text_config())
    model = model.to(device).eval()
    output = model.get_output_embeddings()
    return Engine(
        model=model,
        tokenizer=tokenizer,
        lora=LoraLayers(model),
        output_layer=next((name for name, layer in model.named_modules() if layer is output), None),
        end_tokens=_end_tokens(model.generation_config.eos_token_id, tokenizer.eos_token_id),
        context_length=context_length,
        vocabulary=model.get_input_embeddings().num_embeddings,
        defaults=_defaults(folder / "generation_config.json"),
        device=device,
        dtype=dtype,
    )


def _end_tokens(*sources: int | list[int] | None) -> frozenset[int]:
    lists = [source if isinstance(source, list) else [source] for source in sources]
    return frozenset(token for tokens in lists for token in tokens if token is not None)


def _context_length(config: Any) -> int:
    """Tokens that fit. Inside a sliding window full attention is the same as the window's, so the window bounds it."""
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if not kinds <= {"full_attention", "sliding_attention"}:
        raise EngineFailed(f"the base has layers this engine cannot batch: {', '.join(sorted(kinds))}")
    window = getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None
    return min(int(config.max_position_embeddings), int(window or config.max_position_embeddings))


def _defaults(file: Path) -> Defaults:
    """Temperature and top_p of a generation config, as vLLM reads them too."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Defaults()
    temperature, top_p = config.get("temperature"), config.get("top_p")
    return Defaults(1.0 if temperature is None else float(temperature), 1.0 if top_p is None else float(top_p))
