"""Memory aware synapses on ΔW: importance is how strongly an entry moves the squared length of the output.

For one sequence with logits z_t at its supervised positions t, at the starting weights,

    G = ∂ Σ_t ‖z_t‖² / ∂ΔW,     F = Σ_sequences |G| / T, then scaled to a mean of 1 over all entries of all layers

Aljundi et al. 2018 (arXiv:1711.09601), whose data point is here one sequence: one backward pass each, and |·| of the
sequence's sum, which is at most the sum over its tokens. Labels are not read. The rows are the last task's.

Units: ‖z‖² is not in nats, and the softmax does not see a constant added to all logits while ‖z‖² does, so F has no
scale of its own. The trace of the scaled F is the number of adapted entries: at weight 1 and T_old = T_new the
penalty is ½‖ΔW − ΔW*‖², spread by importance; run.json has the mean before scaling. A weight does not carry over
to EWC or SI.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.types import Json

from ..batches import IGNORED, collate, group_by_length
from ..data import Encoded
from ..errors import ConfigInvalid
from ..fisher.folder import load_importance, save_importance
from ..fisher.importance import Diagonal, Importance, mean_entry
from ..fisher.layer_gradients import listen
from ..lora import lora_layers
from ..modes import evaluation_mode
from ..objective import predict
from ..rehearsal.memory import shuffled
from .laplace import of_the_base
from .quadratic import QuadraticPenalty, laplace_weight, starting_point
from .recipe import Context, Recipe
from .settings import MemoryAware


def build(settings: MemoryAware, context: Context) -> Recipe:
    """Raises `ConfigInvalid` where there are no rows of an earlier task."""
    if not context.past.tasks:
        raise ConfigInvalid(["mas: there are no rows of an earlier task"], hint="name their file with --past")
    if not settings.weight:
        return Recipe()
    raw = of_the_base(_measured(settings, context), context).to(context.model.device)
    weight = laplace_weight(settings.weight, raw.tokens, context.supervised)
    penalty = QuadraticPenalty(settings.method, scaled_to_mean(raw), starting_point(context.model), weight)
    return Recipe((penalty,), finish={settings.method: _Finish(penalty, raw)})


@dataclass(frozen=True, slots=True)
class _Finish:
    penalty: QuadraticPenalty
    raw: Importance

    def __call__(self, model: Any, folder: Path) -> Json:
        omega = self.penalty.measure(model)
        return {"sequences": self.raw.sequences, "unscaled_mean": float(mean_entry(self.raw)), "omega": omega}


def measure_sensitivity(model: Any, examples: Sequence[Encoded], pad_token: int, batch_tokens: int) -> Importance:
    """F before scaling, in squared logits per unit of ΔW and supervised token; several sequences are read at once.

    Leaves parameters, their gradients, modes and torch's global generator as they were.
    """
    layers = lora_layers(model)
    sums = {layer.name: torch.zeros(len(layer.b), layer.a.shape[1], device=layer.a.device) for layer in layers}

    def add(name: str, x: Tensor, delta: Tensor) -> None:
        for row_x, row_delta in zip(x, delta, strict=True):
            sums[name] += (row_delta.T @ row_x).abs()

    handles = listen(layers, add)
    try:
        with evaluation_mode(model), torch.enable_grad():
            for group in group_by_length(range(len(examples)), [len(one) for one in examples], batch_tokens):
                batch = collate([examples[index] for index in group], pad_token).to(layers[0].a.device)
                logits = predict(model, batch)
                supervised = batch.labels[:, -logits.shape[1] :] != IGNORED
                torch.autograd.grad(logits[supervised].square().sum(), [layer.b for layer in layers])
    finally:
        for handle in handles:
            handle.remove()
    tokens = sum(one.supervised for one in examples)
    means = {name: Diagonal(total / tokens) for name, total in sums.items()}
    return Importance("diagonal", "none", means, float(tokens), measured=tokens, sequences=len(examples))


def scaled_to_mean(importance: Importance) -> Importance:
    """F with a mean of 1."""
    share = 1 / float(mean_entry(importance))
    return replace(importance, layers={name: one.scaled(share) for name, one in importance.layers.items()})


def _measured(settings: MemoryAware, context: Context) -> Importance:
    """Once per run; its tokens are those of the whole task."""
    kept = context.cache / settings.method
    if kept.is_dir():
        return load_importance(kept)
    task = context.past.tasks[-1]
    context.observer.say(f"{settings.method}: measuring the outputs' sensitivity on {task.name}")
    order = shuffled([example.row for example in task.examples], context.seed)
    chosen = [task.examples[index] for index in order[: settings.sequences]]
    raw = measure_sensitivity(context.model, chosen, context.loaded.pad_token, context.batch_tokens)
    raw = replace(raw, tokens=float(task.supervised))
    save_importance(raw, kept)
    return raw
