"""A warm start: the weights of an existing adapter as the first ones of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from adapters.base import Base
from adapters.check import CONFIG_FILE, WEIGHTS_FILE, Limits, check_folder
from adapters.errors import BadAdapter

from .errors import ConfigInvalid
from .lora import lora_layers
from .model import adapter_weights, load_weights

_MAX_RANK = 512


def load_start(model: Any, folder: Path, base: Base) -> None:
    """Put the weights of the PEFT folder `folder` into the adapter that `model` carries.

    Raises `ConfigInvalid` with every reason why they do not fit: another base, anything but plain LoRA, another
    rank, scale s or set of layers.
    """
    try:
        check_folder(folder, base, limits=Limits(max_lora_rank=_MAX_RANK))
    except BadAdapter as error:
        raise ConfigInvalid(
            [f"start: {one}" for one in error.problems], hint="start from a plain LoRA folder"
        ) from error
    config = json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    saved, expected = load_file(folder / WEIGHTS_FILE), adapter_weights(model)
    problems = [*_layer_problems(saved, expected), *_shape_problems(saved, expected), *_scale_problems(model, config)]
    if problems:
        raise ConfigInvalid(problems, hint="give this run the shape of the adapter it starts from")
    load_weights(model, folder)


def _layer_problems(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    theirs, ours = (sorted({name.split(".")[-3] for name in names}) for names in (saved, expected))
    if saved.keys() == expected.keys():
        return []
    return [f"start: it adapts {', '.join(theirs)}, this run {', '.join(ours)}: set targets to those of the start"]


def _shape_problems(saved: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    for name in sorted(saved.keys() & expected.keys()):
        theirs, ours = tuple(saved[name].shape), tuple(expected[name].shape)
        if theirs != ours:
            return [f"start: {name} has shape {theirs}, this run needs {ours}: set rank to {min(theirs)}"]
    return []


def _scale_problems(model: Any, config: Mapping[str, Any]) -> list[str]:
    rank, alpha, rslora = config["r"], config["lora_alpha"], bool(config.get("use_rslora"))
    theirs = alpha / (rank**0.5 if rslora else rank)
    ours = lora_layers(model)[0].scale
    if abs(theirs - ours) <= 1e-9 * theirs:
        return []
    return [f"start: its scale is {theirs:g}, this run's {ours:g}: set alpha to {alpha:g} and rslora to {rslora}"]
