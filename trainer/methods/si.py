"""Synaptic intelligence on ΔW: importance is what each entry's path earned, per squared move.

Along the training of a task, with G_n = ∂L/∂ΔW of the step's loss at the weights before the step,

    ω = Σ_n −G_n ∘ (ΔW_{n+1} − ΔW_n)          its sum over all entries is the fall of the loss, to first order
    F = 2 max(ω, 0) / (Δ∘Δ + ξ),   Δ = ΔW_end − ΔW_start,   ξ = damping · mean(Δ∘Δ) over all layers

Zenke et al. 2017 (arXiv:1703.04200), there on the weights themselves and with a free factor c in front. The 2 makes
½⟨F, Δ∘Δ⟩ = Σ max(ω, 0) but for ξ: a move as long as the one that was made is priced at what that one earned, in nats
per supervised token. It is the quadratic penalty of the EWC family, weighted by T_old / T_new; importance of several
tasks is folded as in online EWC with γ = 1.

G is read by hooks from the loop's own backward pass, dropout and all, so it costs one product per layer. It is the
gradient of what goes through the layers' outputs in training mode: the cross entropy, and terms of other methods on
the same logits. Penalties on A and B, this one's own too, are not in it; nor is what runs in evaluation mode.
ω and Δ are those of the whole path, also where an earlier checkpoint or an average is kept in the end: a later
stage's penalty then has its centre there, and F from where the path went on to.
Memory: two more float32 copies of every adapted weight, and a checkpoint as large as one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.types import Json

from ..batches import Batch
from ..fisher.folder import load_importance, save_importance
from ..fisher.importance import Diagonal, Importance, fold
from ..fisher.layer_gradients import listen
from ..lora import Factors, lora_layers, snapshot
from .quadratic import QuadraticPenalty, laplace_weight, starting_point
from .recipe import Context, Finish, Recipe
from .settings import SynapticIntelligence

_LEFT = "importance"


def build(settings: SynapticIntelligence, context: Context) -> Recipe:
    """The penalty of what earlier stages left, none at the first; and the record of this run's path."""
    earlier = _earlier(context, settings.method)
    path = PathImportance(context, settings.damping, earlier)
    finish: dict[str, Finish] = {settings.method: path.finish}
    if earlier is None or not settings.weight:
        return Recipe(hooks=(path,), finish=finish)
    weight = laplace_weight(settings.weight, earlier.tokens, context.supervised)
    penalty = QuadraticPenalty(settings.method, earlier, starting_point(context.model), weight)
    return Recipe((penalty,), (path,), finish=finish)


class PathImportance:
    """ω of every layer over the steps taken so far. Listens to the run's model from the start until `finish`."""

    def __init__(self, context: Context, damping: float, earlier: Importance | None) -> None:
        layers = lora_layers(context.model)
        self._machine = context.machine
        self._tokens = context.supervised
        self._damping = damping
        self._earlier = earlier
        self._start = self._end = snapshot(context.model)
        self._before: Mapping[str, Factors] = {}
        self._gradients = {layer.name: _zeros(layer.delta) for layer in layers}
        self._gains = {layer.name: _zeros(layer.delta) for layer in layers}
        self._handles = listen(layers, self._add_gradient, lambda module: bool(module.training))

    def before_step(self, model: Any, micro_batches: Sequence[Batch]) -> None:
        self._before = snapshot(model)
        for name, own in self._gradients.items():
            self._gradients[name] = self._machine.gather_gradient(own)

    def after_step(self, model: Any) -> None:
        self._end = snapshot(model)
        for name, after in self._end.items():
            gradient = self._gradients[name]
            self._gains[name] -= gradient * (after.dense - self._before[name].dense)
            gradient.zero_()

    def state(self) -> Mapping[str, Any]:
        return {"gains": self._gains, "end": {name: [one.up, one.down] for name, one in self._end.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        for name, gains in state["gains"].items():
            self._gains[name].copy_(gains)
        self._end = {name: Factors(*factors) for name, factors in state["end"].items()}

    def finish(self, model: Any, folder: Path) -> Json:
        """Leaves the importance of this task and all before it. The gain is Σω, the fall of the training loss along
        the path in nats per token; `priced` is what F makes of the same path, `lost` the part of ω below 0.
        """
        for handle in self._handles:
            handle.remove()
        moves = {name: self._end[name].minus(start) for name, start in self._start.items()}
        new = path_importance(self._gains, moves, self._damping, self._tokens)
        save_importance(new if self._earlier is None else fold(self._earlier, new, 1.0), folder / _LEFT)
        return {
            "gain": sum(float(gains.sum()) for gains in self._gains.values()),
            "lost": sum(float(gains.clamp(max=0).sum()) for gains in self._gains.values()),
            "priced": float(new.omega(moves)),
            "tokens": self._tokens,
        }

    def _add_gradient(self, name: str, x: Tensor, delta: Tensor) -> None:
        self._gradients[name].addmm_(delta.flatten(0, -2).T, x.flatten(0, -2))


def path_importance(
    gains: Mapping[str, Tensor], moves: Mapping[str, Factors], damping: float, tokens: float
) -> Importance:
    """F of the docstring from ω and Δ by layer; all zero where nothing moved."""
    squares = {name: move.dense.square() for name, move in moves.items()}
    mean = sum(float(one.sum()) for one in squares.values()) / sum(one.numel() for one in squares.values())
    floor = damping * mean
    layers = {
        name: Diagonal(2 * gains[name].clamp(min=0) / (one + floor) if floor else torch.zeros_like(one))
        for name, one in squares.items()
    }
    return Importance("diagonal", "path", layers, float(tokens))


def _earlier(context: Context, method: str) -> Importance | None:
    if left := context.past.left_by(method):
        return load_importance(left / _LEFT).to(context.model.device)
    if context.past.start:
        context.observer.say(f"{method}: the start has left no importance: nothing is protected, the path is recorded")
    return None


def _zeros(factors: Factors) -> Tensor:
    return torch.zeros(len(factors.up), factors.down.shape[1], device=factors.up.device)
