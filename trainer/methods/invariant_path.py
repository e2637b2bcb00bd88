"""Experimental: a short step in outputs on the anchors, after functionally invariant paths (FIP).

    penalty_n = weight · mean over supervised tokens of KL(p_{n−1} ‖ p_n)        in nats per supervised token

p_n are the model's distributions on a few anchor rows at the weights that step n starts from, p_{n−1} those one step
before, which have no gradient; both with dropout off. Every step reads the next rows, in a fixed order, round and
round. On the first step the two are equal and the penalty is 0.

To first order its gradient is weight · G·u_{n−1} with the last move u_{n−1} and G = Σ Jᵀ(diag p − p pᵀ)J / T, the
metric that outputs put on the weights. Under plain gradient descent with rate η the moves then settle, where
η · weight · ‖G‖ < 1, at u = −(1/η + weight·G)⁻¹ ∇L: a step of the path that changes the outputs least for what it
gains. That is the idea of Raghavan et al. 2024 (Nature Machine Intelligence, s42256-024-00902-x). What differs: they
solve for each direction with an explicit metric, here the last move stands in for it, and AdamW changes its scale;
their metric is on raw outputs, here it is the one of KL. Their released text example does something simpler: a
distance (Bhattacharyya) to the model that the run starts from, which here is the method `distill` on anchors.
What is penalised is the speed of the path, not its end: slow drift adds up. No evidence at the size of a language
model is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.types import Json

from ..batches import IGNORED, Batch, collate
from ..data import Encoded
from ..errors import ConfigInvalid
from ..modes import evaluation_mode
from ..objective import predict
from ..rehearsal.memory import shuffled
from .recipe import Context, Recipe
from .settings import InvariantPath


def build(settings: InvariantPath, context: Context) -> Recipe:
    """Raises `ConfigInvalid` without anchors or earlier tasks, `LeakFound` where an evaluation reads one of them."""
    anchors = find_anchors(context)
    path = OutputPath(settings.method, anchors, settings.rows, settings.weight, context.loaded.pad_token)
    if not settings.weight:
        return Recipe()
    return Recipe(penalties=(path,), hooks=(path,), finish={settings.method: path.finish})


class OutputPath:
    """weight · KL(p of the step before ‖ p now) on the step's anchors; a penalty, and the hook that looks back."""

    def __init__(self, name: str, anchors: Sequence[Encoded], rows: int, weight: float, pad_token: int) -> None:
        self._name = name
        self._anchors = anchors
        self._rows = min(rows, len(anchors))
        self._weight = weight
        self._pad_token = pad_token
        self._steps = 0
        self._before: Tensor | None = None
        self._change = self._length = 0.0

    @property
    def name(self) -> str:
        return self._name

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        if self._before is None:
            return logits.new_zeros(())
        now = self._log_probs(model, self._steps)
        change = (self._before.exp() * (self._before - now)).sum() / len(now)
        self._change = float(change.detach())
        return self._weight * change

    def before_step(self, model: Any, micro_batches: Sequence[Batch]) -> None:
        """Keep what the weights that are about to move say to the rows of the next step."""
        self._steps += 1
        self._length += self._change
        with torch.no_grad():
            self._before = self._log_probs(model, self._steps)

    def after_step(self, model: Any) -> None:
        """Nothing."""

    def state(self) -> Mapping[str, Any]:
        """The outputs too, (supervised tokens of the rows, vocabulary) in float32."""
        return {"steps": self._steps, "before": self._before, "length": self._length}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._steps, self._before, self._length = state["steps"], state["before"], state["length"]

    def finish(self, model: Any, folder: Path) -> Json:
        """How many anchors there are, and the path's length so far: the sum of the steps' KL in nats per token."""
        return {"anchors": len(self._anchors), "path_length": self._length}

    def _log_probs(self, model: Any, step: int) -> Tensor:
        """log p at every supervised position of the rows of `step`: (tokens, vocabulary)."""
        first = step * self._rows
        rows = [self._anchors[(first + index) % len(self._anchors)] for index in range(self._rows)]
        batch = collate(rows, self._pad_token).to(next(model.parameters()).device)
        with evaluation_mode(model):
            logits = predict(model, batch)
        supervised = batch.labels[:, -logits.shape[1] :] != IGNORED
        return logits[supervised].log_softmax(dim=-1)


def find_anchors(context: Context) -> list[Encoded]:
    """The run's anchors, or else all rows of its earlier tasks, in a random order of the run's seed."""
    anchors = context.past.anchors or [row for task in context.past.tasks for row in task.examples]
    if not anchors:
        raise ConfigInvalid(
            ["invariant_path: there are no anchors and no rows of an earlier task"],
            hint="name a file with --anchor or --past",
        )
    context.refuse_judged(anchors, "invariant_path", "anchors")
    return [anchors[index] for index in shuffled([row.row for row in anchors], context.seed)]
