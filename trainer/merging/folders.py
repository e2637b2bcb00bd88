"""PEFT folders as ΔW, and ΔW as a plain LoRA folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import load_file
from torch import Tensor

from adapters.base import MAX_HEADER_BYTES, Base
from adapters.tensors import read_header

from ..lora import Factors
from ..model import WEIGHTS_FILE, write_adapter
from .wise_ft import scaled

_KEY = re.compile(r"base_model\.model\.(?P<layer>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True, slots=True)
class StoredAdapter:
    """A plain LoRA folder in memory: `weights` in float32 by their names in the folder, `config` as PEFT reads it."""

    config: Any
    weights: Mapping[str, Tensor]

    @property
    def layers(self) -> dict[str, Factors]:
        """ΔW by layer; s = α/r, or α/√r for rsLoRA, with the layer's own rank r."""
        found = {}
        for name, b in self.weights.items():
            match = _KEY.fullmatch(name)
            if match and match["side"] == "B":
                a = self.weights[_weight_name(match["layer"], "A")]
                found[match["layer"]] = Factors(scale_of(self.config, a.shape[0]) * b, a)
        return found


def scale_of(config: Any, rank: int) -> float:
    """s of a layer of this rank."""
    return float(config.lora_alpha / (rank**0.5 if config.use_rslora else rank))


def read_adapter(folder: Path) -> StoredAdapter:
    """Read a folder that `adapters.check.check_folder` has passed: plain LoRA, of any float type."""
    weights = {name: tensor.float() for name, tensor in load_file(folder / WEIGHTS_FILE).items()}
    return StoredAdapter(LoraConfig.from_pretrained(str(folder)), weights)


def write_scaled(stored: StoredAdapter, weight: float, folder: Path, base: Base) -> None:
    """Write w·ΔW with the rank and scale it was stored with: for w = 1 the very same weights."""
    config = stored.config
    config.target_modules = set(target_names(stored.layers, base))
    weights = {name: scaled(one, weight) if ".lora_B." in name else one for name, one in stored.weights.items()}
    write_adapter(folder, config, weights, base.id)


def write_layers(layers: Mapping[str, Factors], folder: Path, base: Base) -> None:
    """Write ΔW with one rank r for all layers and α = r, so that s = 1; thinner layers are filled up with zeros."""
    rank = rank_of(layers.values())
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=list(target_names(layers, base)),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    weights = {}
    for name, delta in layers.items():
        missing = rank - delta.up.shape[1]
        weights[_weight_name(name, "A")] = torch.nn.functional.pad(delta.down, (0, 0, 0, missing)).contiguous()
        weights[_weight_name(name, "B")] = torch.nn.functional.pad(delta.up, (0, missing)).contiguous()
    write_adapter(folder, config, weights, base.id)


def rank_of(deltas: Iterable[Factors]) -> int:
    """The largest rank in use, at least 1."""
    return max([1, *(delta.up.shape[1] for delta in deltas)])


def target_names(layers: Iterable[str], base: Base) -> Sequence[str]:
    """What `target_modules` must say to mean exactly `layers`: last names where those are no other layer's too."""
    adapted = set(layers)
    others = {name.rpartition(".")[2] for name in _matrices(base) - adapted}
    return sorted({layer if (last := layer.rpartition(".")[2]) in others else last for layer in adapted})


def _matrices(base: Base) -> set[str]:
    shards = [read_header(shard, limit=MAX_HEADER_BYTES) for shard in sorted(base.folder.glob("*.safetensors"))]
    return {name.removesuffix(".weight") for shard in shards for name, one in shard.items() if len(one.shape) == 2}


def _weight_name(layer: str, side: str) -> str:
    return f"base_model.model.{layer}.lora_{side}.weight"
