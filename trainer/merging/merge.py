"""Merging whole adapters: layer by layer on ΔW, in float32, with what a low rank leaves out counted.

A layer that only some of the adapters have is 0 in the others. Never on A and B apart: Σ BᵢAᵢ ≠ (Σ Bᵢ)(Σ Aᵢ).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from adapters.base import Base
from adapters.errors import BadAdapter

from ..errors import RankTooLarge
from ..lora import Factors
from .config import DEFAULT_RANK, MergeSettings
from .dare import drop, mask_generator
from .folders import StoredAdapter, rank_of, write_layers, write_scaled
from .soup import mean
from .svd import Truncated, truncate, truncate_dense
from .task_arithmetic import weighted_sum
from .ties import merge_ties

_SHOWN = 8


@dataclass(frozen=True, slots=True)
class Weighted:
    """One input of a merge; `digest` is that of its two files and draws its DARE masks."""

    adapter: StoredAdapter
    digest: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Merged:
    """ΔW by layer, and by layer the share of the energy that the rank left out."""

    layers: Mapping[str, Factors]
    lost: Mapping[str, float]

    @property
    def rank(self) -> int:
        return rank_of(self.layers.values())


def merge_adapters(
    inputs: Sequence[Weighted], settings: MergeSettings, on_layer: Callable[[int, int], None] | None = None
) -> Merged:
    """Merge `inputs`, which are adapters of one base. Draws nothing from torch's global generator.

    `on_layer` hears how many layers of how many are done.
    """
    present = [one.adapter.layers for one in inputs]
    names = list(dict.fromkeys(name for layers in present for name in layers))
    found: dict[str, Truncated] = {}
    for name in names:
        found[name] = _merge_layer(name, _with_zeros(name, present), inputs, settings)
        if on_layer:
            on_layer(len(found), len(names))
    return Merged({name: one.factors for name, one in found.items()}, {name: one.lost for name, one in found.items()})


def write_merged(merged: Merged, inputs: Sequence[Weighted], settings: MergeSettings, folder: Path, base: Base) -> None:
    """Write the merged adapter as a PEFT folder; one that was only scaled keeps the rank and α it had."""
    if settings.method == "scale" and merged.rank >= rank_of(inputs[0].adapter.layers.values()):
        write_scaled(inputs[0].adapter, inputs[0].weight, folder, base)
    else:
        write_layers(merged.layers, folder, base)


def refuse_misfits(inputs: Sequence[Weighted]) -> None:
    """Raise `BadAdapter` where inputs disagree on a layer's shape, which a quantised base cannot tell beforehand."""
    shapes: dict[str, set[tuple[int, int]]] = {}
    for one in inputs:
        for name, delta in one.adapter.layers.items():
            shapes.setdefault(name, set()).add((delta.up.shape[0], delta.down.shape[1]))
    problems = [f"{name} is {sorted(found)} in different inputs" for name, found in shapes.items() if len(found) > 1]
    if problems:
        raise BadAdapter("; ".join(problems[:_SHOWN]), hint="merge adapters of one base", problems=problems)


def refuse_large_rank(inputs: Sequence[Weighted], settings: MergeSettings) -> None:
    """Raise `RankTooLarge` where soup or sum would need more rank than the limit: what is lost is for people to say."""
    if settings.rank or settings.method not in ("soup", "sum"):
        return
    needed: Counter[str] = Counter()
    for one in inputs:
        if settings.method == "soup" or one.weight:
            needed.update({name: delta.up.shape[1] for name, delta in one.adapter.layers.items()})
    rank = max(needed.values(), default=0)
    if rank > DEFAULT_RANK:
        raise RankTooLarge(
            f"the exact {settings.method} has rank {rank}, engines load up to {DEFAULT_RANK}",
            hint=f"give --rank {DEFAULT_RANK}: it says how much energy that loses",
        )


def _merge_layer(
    name: str, deltas: Sequence[Factors], inputs: Sequence[Weighted], settings: MergeSettings
) -> Truncated:
    weights = [one.weight for one in inputs]
    rank = settings.rank_of(sum(delta.up.shape[1] for delta in deltas))
    if settings.method == "ties":
        dense = [delta.dense * weight for delta, weight in zip(deltas, weights, strict=True)]
        return truncate_dense(merge_ties(dense, settings.density), rank)
    if settings.method == "dare":
        total = torch.zeros_like(deltas[0].dense)
        for delta, one in zip(deltas, inputs, strict=True):
            generator = mask_generator(settings.seed, one.digest, name)
            total += one.weight * drop(delta.dense, settings.drop, generator)
        return truncate_dense(total, rank)
    return truncate(mean(deltas) if settings.method == "soup" else weighted_sum(deltas, weights), rank)


def _with_zeros(name: str, present: Sequence[Mapping[str, Factors]]) -> list[Factors]:
    one = next(layers[name] for layers in present if name in layers)
    zero = Factors(one.up[:, :0], one.down[:0])
    return [layers.get(name, zero) for layers in present]
