"""A PEFT LoRA folder to tensors: two files, no pickle, nothing ignored in silence."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ...errors import AdapterUnavailable
from .engine import Engine
from .lora import Adapter, LowRank

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\.weight")
_TARGETING = {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"}
_APPLIED = _TARGETING | {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora"}
_NAMES = {"base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_type", "peft_version"}
_NO_EFFECT = _NAMES | {"inference_mode", "lora_dropout"}
_HARMLESS_INITIALISATIONS = (True, False, "gaussian", "orthogonal")
_MAX_PROBLEMS = 5


def read_adapter(folder: Path, engine: Engine) -> Adapter:
    """Read the version in `folder` for the base in `engine`. Raises `AdapterUnavailable`.

    Refused, all problems at once: settings this engine would not apply, keys without a layer, layers named by the
    config without weights, wrong shapes, numbers that are not finite in `dtype`.
    """
    linears, device, dtype = engine.lora.linears, engine.device, engine.dtype
    config = _read_config(folder / CONFIG_FILE)
    tensors = _read_weights(folder / WEIGHTS_FILE)
    targets = {name for name in linears if _is_target(config, name, engine.output_layer)}
    problems = _key_problems(tensors, targets)
    layers: dict[str, LowRank] = {}
    if not problems:
        for name in sorted(targets):
            down, up = (tensors[f"base_model.model.{name}.lora_{factor}.weight"] for factor in "AB")
            rank, scaling = _rank_and_scaling(config, name)
            problems += _shape_problems(name, down, up, rank, linears[name])
            layers[name] = LowRank(down.to(device, dtype), (up.float() * scaling).to(device, dtype))
        problems += [
            f"{name} holds numbers that are not finite" for name, layer in layers.items() if not _finite(layer)
        ]
    if problems:
        more = f" and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise AdapterUnavailable(f"the adapter does not fit this base: {'; '.join(problems[:_MAX_PROBLEMS])}{more}")
    return Adapter(layers)


def _read_config(file: Path) -> LoraConfig:
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterUnavailable(f"{file.name} cannot be read: {type(error).__name__}") from error
    if not isinstance(given, dict) or given.get("peft_type") != "LORA":
        raise AdapterUnavailable(f"{file.name} does not describe a LoRA adapter")
    refused = _not_applied(given)
    if refused:
        raise AdapterUnavailable(f"{file.name} asks for what this engine does not apply: {', '.join(refused)}")
    try:
        return LoraConfig(**{name: given[name] for name in _APPLIED & given.keys()})
    except (TypeError, ValueError) as error:
        raise AdapterUnavailable(f"{file.name} is not valid: {error}") from error


def _not_applied(given: Mapping[str, Any]) -> list[str]:
    """Settings that PEFT would act on and this engine would not, so that they must be at rest."""
    at_rest = dataclasses.asdict(LoraConfig())
    refused = [
        name
        for name, value in given.items()
        if name not in _APPLIED | _NO_EFFECT | {"init_lora_weights"} and value and value != at_rest.get(name)
    ]
    initialisation = given.get("init_lora_weights", True)
    return refused + ([] if initialisation in _HARMLESS_INITIALISATIONS else ["init_lora_weights"])


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        tensors = load_file(file)
    except (OSError, SafetensorError, ValueError) as error:
        raise AdapterUnavailable(f"{file.name} cannot be read: {type(error).__name__}") from error
    if not tensors:
        raise AdapterUnavailable(f"{file.name} holds no tensors")
    return tensors


def _is_target(config: LoraConfig, name: str, output_layer: str | None) -> bool:
    if config.target_modules == "all-linear":
        return name != output_layer
    return bool(check_target_module_exists(config, name))


def _key_problems(tensors: Mapping[str, Tensor], targets: set[str]) -> list[str]:
    """Keys that would be ignored, and targets that would stay as they are."""
    found: dict[str, set[str]] = {"A": set(), "B": set()}
    problems: list[str] = []
    for key in sorted(tensors):
        match = _KEY.fullmatch(key)
        if match is None or match["module"] not in targets:
            problems.append(f"{key} belongs to no linear layer the config names")
        else:
            found[match["factor"]].add(match["module"])
    for factor, modules in found.items():
        problems += [f"lora_{factor} of {name} is missing" for name in sorted(targets - modules)]
    return problems


def _rank_and_scaling(config: LoraConfig, name: str) -> tuple[int, float]:
    """As PEFT: alpha / rank, or alpha / √rank for rank-stabilised LoRA (Kalajdzievski, 2023)."""
    ranks, alphas = config.rank_pattern or {}, config.alpha_pattern or {}
    rank = int(ranks.get(get_pattern_key(list(ranks), name), config.r))
    alpha = float(alphas.get(get_pattern_key(list(alphas), name), config.lora_alpha))
    return rank, alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _shape_problems(name: str, down: Tensor, up: Tensor, rank: int, linear: nn.Linear) -> list[str]:
    wanted = {"lora_A": (rank, linear.in_features), "lora_B": (linear.out_features, rank)}
    return [
        f"{factor} of {name} has shape {tuple(tensor.shape)}, expected {wanted[factor]}"
        for factor, tensor in (("lora_A", down), ("lora_B", up))
        if tuple(tensor.shape) != wanted[factor]
    ]


def _finite(layer: LowRank) -> bool:
    return bool(torch.isfinite(layer.down).all()) and bool(torch.isfinite(layer.up).all())
