"""O-LoRA: keep the new adapter's input directions orthogonal to those of earlier adapters.

    penalty = weight · Σ_layers Σ_old Σ_jk |A_old A_newᵀ|_jk        A_old (rank_old, in),  A_new (rank, in)

Wang et al. 2023 (arXiv:2310.14152). Their text has the squares of the entries, their released code the absolute
values, with weight 0.5; the published figures come from the code, so this is the code's form. It differs in setting:
there the frozen earlier adapters stay active in the forward pass, here every adapter serves alone, so only the
penalty is taken. Their second term, a norm of the new adapter, has weight 0 in their script of the first task order
and is left out.

Units: none. This is the one term that is no mean in nats per token, and its size grows with the number of layers, of
earlier adapters and of their norms: a weight does not carry over to another base or rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapters.types import Json

from ..batches import Batch
from ..errors import ConfigInvalid
from ..lora import lora_layers
from ..model import WEIGHTS_FILE
from .recipe import Context, Recipe
from .settings import Orthogonal

_PREFIX = "base_model.model."
_SUFFIX = ".lora_A.weight"


def build(settings: Orthogonal, context: Context) -> Recipe:
    """Raises `ConfigInvalid` where there is no earlier adapter, or one of another base."""
    if not context.past.adapters:
        raise ConfigInvalid(["orthogonal: no earlier adapter is given"], hint="name their folders with --adapter")
    earlier = read_directions(context.past.adapters, context.model)
    penalty = SubspaceOverlap(settings.method, earlier, settings.weight)
    return Recipe(penalties=(penalty,) if settings.weight else (), finish={settings.method: penalty.finish})


class SubspaceOverlap:
    """weight · Σ |A_old A_newᵀ|. `earlier` holds the earlier adapters' A by layer, one below the other."""

    def __init__(self, name: str, earlier: Mapping[str, Tensor], weight: float) -> None:
        self._name = name
        self._earlier = earlier
        self._weight = weight

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        return self._weight * self._overlap(model)

    def finish(self, model: Any, folder: Path) -> Json:
        """The overlap without its weight, and the mean |cos| between earlier and new directions: rank-independent."""
        with torch.no_grad():
            cosines = [_cosines(self._earlier[name], a).flatten() for name, a in self._shared(model)]
            mean = float(torch.cat(cosines).mean())
            return {"overlap": float(self._overlap(model)), "mean_cosine": mean, "layers": len(self._earlier)}

    def _overlap(self, model: Any) -> Tensor:
        return torch.stack([(self._earlier[name] @ a.T).abs().sum() for name, a in self._shared(model)]).sum()

    def _shared(self, model: Any) -> list[tuple[str, Tensor]]:
        return [(layer.name, layer.a.float()) for layer in lora_layers(model) if layer.name in self._earlier]


def read_directions(adapters: Sequence[Path], model: Any) -> dict[str, Tensor]:
    """A of all `adapters` by layer of `model`, (Σ rank, in) in float32 on the model's device; ranks may differ, and a
    layer that one of them lacks is skipped for it.

    Raises `ConfigInvalid` for folders that are no LoRA adapter, or that share no layer, or not its width, with it.
    """
    layers = {layer.name: layer.a for layer in lora_layers(model)}
    found: dict[str, list[Tensor]] = {}
    problems: list[str] = []
    for folder in adapters:
        directions = _read(folder, problems)
        shared = {name: a for name, a in directions.items() if name in layers}
        if directions and not shared:
            problems.append(f"orthogonal: {folder.name} and this run adapt no layer in common")
        for name, a in shared.items():
            width = layers[name].shape[1]
            if a.shape[1] != width:
                problems.append(f"orthogonal: {folder.name} has {a.shape[1]} inputs at {name}, this run {width}")
            found.setdefault(name, []).append(a.to(layers[name].device, torch.float32))
    if problems:
        raise ConfigInvalid(problems, hint="give PEFT LoRA folders that were trained on this base")
    return {name: torch.cat(several) for name, several in found.items()}


def _read(folder: Path, problems: list[str]) -> dict[str, Tensor]:
    try:
        weights = load_file(folder / WEIGHTS_FILE)
    except (OSError, SafetensorError) as error:
        problems.append(f"orthogonal: {folder.name} cannot be read: {' '.join(str(error).split())[:200]}")
        return {}
    directions = {
        name.removeprefix(_PREFIX).removesuffix(_SUFFIX): tensor
        for name, tensor in weights.items()
        if name.endswith(_SUFFIX)
    }
    if not directions:
        problems.append(f"orthogonal: {folder.name} holds no LoRA weights")
    return directions


def _cosines(earlier: Tensor, new: Tensor) -> Tensor:
    return (torch.nn.functional.normalize(earlier, dim=1) @ torch.nn.functional.normalize(new, dim=1).T).abs()
