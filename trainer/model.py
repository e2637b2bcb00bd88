"""The base with a LoRA adapter on it, and the PEFT folder that an engine loads."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from adapters.base import Base

from .config import ALL_LINEAR, TrainConfig
from .data import Encoded
from .errors import BaseUnusable

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class LoadedBase:
    """A base in memory. `end_tokens` end a turn: the tokenizer's and the generation config's."""

    base: Base
    model: Any
    tokenizer: Any
    end_tokens: frozenset[int]
    pad_token: int

    @property
    def context_length(self) -> int:
        """Tokens the base can attend to."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2**31)

    def require_tokens(self, name: str, examples: Iterable[Encoded]) -> None:
        """Raise `BaseUnusable` where examples of `name` hold token ids that the base has no embedding for."""
        size = int(self.model.get_input_embeddings().num_embeddings)
        largest = max((max((*one.prompt, *one.completion)) for one in examples), default=0)
        if largest >= size:
            raise BaseUnusable(
                f"{name}: the tokenizer gives token id {largest}, the base knows {size} tokens",
                hint="give the base the tokenizer that it was made with",
            )


@dataclass(frozen=True, slots=True)
class LoraShape:
    """ΔW = s·B·A with A of shape (rank, in), B of shape (out, rank), s = α/rank, or α/√rank for rsLoRA."""

    rank: int
    alpha: int
    targets: tuple[str, ...]
    dropout: float = 0.0
    rslora: bool = False

    @classmethod
    def of(cls, config: TrainConfig) -> LoraShape:
        """The shape that a run's settings ask for."""
        return cls(config.rank, config.alpha, config.targets, config.dropout, config.rslora)


def load_base(base: Base, device: torch.device | None = None) -> LoadedBase:
    """Load `base` in float32 from its folder to `device`, by default a GPU where there is one; nothing is downloaded.

    Raises `BaseUnusable`.
    """
    place = device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # On a CPU the fused attention's backward pass in bfloat16 costs several times the plain one.
    how = {"attn_implementation": "eager"} if place.type == "cpu" else {}
    # cuDNN's gives gradients that are NaN on Hopper, where rows begin with padding (torch 2.11, pytorch issue 196678).
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(base.folder, local_files_only=True)
        model: Any = AutoModelForCausalLM.from_pretrained(
            base.folder, local_files_only=True, dtype=torch.float32, **how
        )
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BaseUnusable(f"cannot load base {base.id}: {reason}", hint="check the base's folder") from error
    end_tokens = _end_tokens(model, tokenizer)
    pad_token = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(end_tokens)
    # Evaluation is plain greedy decoding: the base's own sampling defaults and penalties must not leak into it.
    settings = {"eos_token_id": sorted(end_tokens), "pad_token_id": pad_token}
    model.generation_config = GenerationConfig.from_dict(settings)
    return LoadedBase(base, model.to(place).eval(), tokenizer, end_tokens, pad_token)


def add_lora(loaded: LoadedBase, shape: LoraShape) -> PeftModel:
    """Put a fresh adapter on the base (B = 0: it changes nothing yet); draws A from torch's global generator."""
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        target_modules=list(target_modules(loaded.model, shape.targets)),
        lora_dropout=shape.dropout,
        use_rslora=shape.rslora,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(loaded.model, config)


def target_modules(model: Any, targets: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the layers to adapt; `all-linear` is every linear layer but the output head."""
    head = model.get_output_embeddings()
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    wanted = linear if ALL_LINEAR in targets else set(targets)
    missing = sorted(wanted - linear)
    if missing or not wanted:
        raise BaseUnusable(
            f"the base has no linear layer named {', '.join(missing) or '(any)'}",
            hint=f"choose targets among {', '.join(sorted(linear)) or 'nothing: it has no linear layer'}",
        )
    return tuple(sorted(wanted))


def save_adapter(model: PeftModel, folder: Path, base_id: str) -> None:
    """Write the adapter that `model` carries as a PEFT folder."""
    write_adapter(folder, model.peft_config["default"], adapter_weights(model), base_id)


def write_adapter(folder: Path, config: Any, weights: Mapping[str, torch.Tensor], base_id: str) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`, aside first and renamed when complete.

    The config names the base by its id, never by a path of this machine.
    """
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    config.save_pretrained(str(aside))
    written = json.loads((aside / CONFIG_FILE).read_text(encoding="utf-8"))
    written |= {"base_model_name_or_path": base_id, "inference_mode": True}
    if "target_modules" in written:
        written["target_modules"] = sorted(config.target_modules)
    (aside / CONFIG_FILE).write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    save_file(dict(weights), aside / WEIGHTS_FILE, metadata={"format": "pt"})
    for file in (CONFIG_FILE, WEIGHTS_FILE):
        with (aside / file).open("rb") as handle:
            os.fsync(handle.fileno())
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)


def adapter_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The adapter's tensors by their names in a PEFT folder, detached and on the CPU."""
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}


def load_weights(model: PeftModel, folder: Path) -> None:
    """Put the weights of `folder` into the adapter that `model` carries; shapes and names must agree."""
    saved = load_file(folder / WEIGHTS_FILE)
    expected = adapter_weights(model)
    wrong = sorted(
        name
        for name in saved.keys() | expected.keys()
        if name not in saved or name not in expected or saved[name].shape != expected[name].shape
    )
    if wrong:
        raise BaseUnusable(
            f"{folder.name} does not fit this adapter: {len(wrong)} tensors differ, first {wrong[0]}",
            hint="start again with a fresh --out",
        )
    set_peft_model_state_dict(model, saved)


def load_adapter(loaded: LoadedBase, folder: Path) -> PeftModel:
    """The base with the adapter of an existing PEFT folder on it, for evaluation."""
    try:
        return PeftModel.from_pretrained(loaded.model, str(folder), is_trainable=False).eval()
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise BaseUnusable(
            f"cannot load the adapter in {folder.name}: {reason}", hint="give the folder that `train` wrote"
        ) from error


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    named = [tokenizer.eos_token_id, getattr(model.generation_config, "eos_token_id", None)]
    tokens = {token for one in named for token in (one if isinstance(one, list) else [one]) if token is not None}
    if not tokens:
        raise BaseUnusable(
            "the base names no end-of-sequence token", hint="set eos_token in the base's tokenizer_config.json"
        )
    return frozenset(tokens)
