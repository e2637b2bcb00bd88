"""An importance on disk: a folder of tensors and their meaning, complete or absent, nothing in it that runs.

FOLDER/importance.safetensors   `layer|term|side` in float32; a diagonal has the one side `values`
FOLDER/importance.json          kind, labels, tokens, measured, positions, sequences, seconds, layers in order
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointInvalid
from ..folder import write_json
from .importance import Curvature, Diagonal, Importance, Kronecker

_TENSORS = "importance.safetensors"
_MEANING = "importance.json"
_COUNTS = ("tokens", "measured", "positions", "sequences", "seconds")


def save_importance(importance: Importance, folder: Path) -> None:
    """Write `folder` aside and rename it."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    tensors = {
        f"{name}|{key}": tensor.float().cpu().contiguous().clone()
        for name, curvature in importance.layers.items()
        for key, tensor in _sides(curvature).items()
    }
    save_file(tensors, aside / _TENSORS)
    counts = {key: getattr(importance, key) for key in _COUNTS}
    meaning = {"kind": importance.kind, "labels": importance.labels, "layers": list(importance.layers), **counts}
    write_json(aside / _MEANING, meaning)
    shutil.rmtree(folder, ignore_errors=True)
    aside.replace(folder)


def load_importance(folder: Path) -> Importance:
    """What `save_importance` wrote, on the CPU. Raises `CheckpointInvalid` for a folder that is not that."""
    try:
        meaning = json.loads((folder / _MEANING).read_text(encoding="utf-8"))
        tensors = load_file(folder / _TENSORS)
        layers = {name: _curvature(meaning["kind"], _below(tensors, name)) for name in meaning["layers"]}
        counts = {key: meaning[key] for key in _COUNTS}
        return Importance(meaning["kind"], meaning["labels"], layers, **counts)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointInvalid(
            f"the importance in {folder.name} cannot be read: {' '.join(str(error).split())[:200]}",
            hint="run the earlier stage again",
        ) from error


def _sides(curvature: Curvature) -> dict[str, Tensor]:
    if isinstance(curvature, Diagonal):
        return {"0|values": curvature.values}
    if isinstance(curvature, Kronecker):
        pairs = enumerate(curvature.terms)
        return {f"{term}|{side}": one for term, pair in pairs for side, one in zip(("out", "into"), pair, strict=True)}
    raise TypeError(f"a {type(curvature).__name__} is not stored")


def _below(tensors: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{name}|"): one for key, one in tensors.items() if key.startswith(f"{name}|")}


def _curvature(kind: str, sides: Mapping[str, Tensor]) -> Curvature:
    if kind == "diagonal":
        return Diagonal(sides["0|values"])
    return Kronecker(tuple((sides[f"{term}|out"], sides[f"{term}|into"]) for term in range(len(sides) // 2)))
