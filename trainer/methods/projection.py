"""A-GEM: a step's gradient loses what would raise the loss on remembered rows.

    g̃ = g − (⟨g, g_ref⟩ / ⟨g_ref, g_ref⟩) · g_ref   where ⟨g, g_ref⟩ < 0, else g̃ = g

Chaudhry et al. 2019 (arXiv:1812.00420). g is the gradient of the whole loss of the step, g_ref that of the mean
cross entropy (nats per supervised token) of some remembered rows, drawn afresh at every step, dropout off; the
products run over all trainable parameters together. The promise, that the remembered loss does not rise, holds to
first order for plain gradient descent; clipping keeps the direction, but AdamW, which follows here, does not.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.types import Json

from ..batches import Batch, collate, group_by_length
from ..data import Encoded
from ..errors import ConfigInvalid
from ..modes import evaluation_mode
from ..objective import predict, token_nll
from ..rehearsal.memory import quotas, shuffled
from .recipe import Context, Recipe
from .settings import Projection


def build(settings: Projection, context: Context) -> Recipe:
    """Raises `ConfigInvalid` without rows of earlier tasks, `LeakFound` where an evaluation reads one of them."""
    memory = remember(settings.capacity, context)
    hook = GradientProjection(memory, settings.rows, context)
    return Recipe(hooks=(hook,), finish={settings.method: hook.finish})


class GradientProjection:
    """Projects the gradient before every step that would hurt. The rows of step n depend on the seed and n alone."""

    def __init__(self, memory: Sequence[Encoded], rows: int, context: Context) -> None:
        self._memory = memory
        self._rows = min(rows, len(memory))
        self._seed = context.seed
        self._pad_token = context.loaded.pad_token
        self._batch_tokens = context.batch_tokens
        self._steps = 0
        self._projected = 0

    def before_step(self, model: Any, micro_batches: Sequence[Batch]) -> None:
        self._steps += 1
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        reference = self._reference_gradient(model, parameters)
        self._projected += project(parameters, reference)

    def after_step(self, model: Any) -> None:
        """Nothing."""

    def state(self) -> Mapping[str, Any]:
        return {"steps": self._steps, "projected": self._projected}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._steps, self._projected = state["steps"], state["projected"]

    def finish(self, model: Any, folder: Path) -> Json:
        """How many of the steps were projected, and how many rows were remembered."""
        return {"steps": self._steps, "projected": self._projected, "remembered": len(self._memory)}

    def _reference_gradient(self, model: Any, parameters: Sequence[Tensor]) -> list[Tensor]:
        """∂(mean nats per supervised token of the drawn rows)/∂parameters; leaves the parameters' `grad` alone."""
        draw = random.Random(f"{self._seed}/projection/{self._steps}")  # noqa: S311 - an order of rows, not a secret
        rows = [self._memory[index] for index in draw.sample(range(len(self._memory)), self._rows)]
        supervised = sum(row.supervised for row in rows)
        total = [torch.zeros_like(parameter) for parameter in parameters]
        with evaluation_mode(model):
            for group in group_by_length(range(len(rows)), [len(row) for row in rows], self._batch_tokens):
                batch = collate([rows[index] for index in group], self._pad_token).to(parameters[0].device)
                loss = token_nll(predict(model, batch), batch).sum() / supervised
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
                for sums, gradient in zip(total, gradients, strict=True):
                    if gradient is not None:
                        sums += gradient
        return total


def project(parameters: Sequence[Tensor], reference: Sequence[Tensor]) -> bool:
    """Take out of the parameters' `grad`, in place, its part against `reference`; whether there was one."""
    pairs = [(one.grad, ref) for one, ref in zip(parameters, reference, strict=True) if one.grad is not None]
    dot = sum(float((gradient * ref).sum(dtype=torch.float64)) for gradient, ref in pairs)
    norm = sum(float(ref.square().sum(dtype=torch.float64)) for ref in reference)
    if not (dot < 0 < norm):
        return False
    for parameter, ref in zip(parameters, reference, strict=True):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.sub_(ref, alpha=dot / norm)
    return True


def remember(capacity: int, context: Context) -> list[Encoded]:
    """At random, as many rows of every earlier task as its quota of `capacity`; a task with fewer gives all it has."""
    tasks = context.past.tasks
    if not tasks:
        raise ConfigInvalid(["projection: there are no rows of an earlier task"], hint="name their files with --past")
    memory = []
    for task, quota in zip(tasks, quotas(capacity, len(tasks)), strict=True):
        order = shuffled([example.row for example in task.examples], context.seed)
        memory += [task.examples[index] for index in order[:quota]]
    context.refuse_judged(memory, "projection", "remembered rows")
    return memory
