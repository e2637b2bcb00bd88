"""Learning without forgetting: stay near the version that the run starts from.

    L += λ_kd · τ² · (1/T) Σ_t KL(p_teacher^τ(·|y_<t) ‖ p^τ(·|y_<t)),   p^τ = softmax(logits / τ)

over the T supervised positions, in nats; τ² keeps the gradient's size as τ grows. The teacher is the model with the
adapter it starts with (`past.start`; the base where there is none), dropout off. Li and Hoiem 2016 (arXiv 1606.09282),
Hinton et al. 2015 (arXiv 1503.02531).

`live` reads the teacher at every step. `cached` reads it once and keeps k tokens x_i per position, drawn from
p_teacher^τ (Anshumann et al. 2025, arXiv 2503.16870): (1/k) Σ_i log p_teacher^τ(x_i) − log p^τ(x_i) has the KL for its
mean, and the KL's gradient for the mean of its gradient. One position's value is noisy and may be negative.

Applies to replayed rows as well: their teacher is the same. Those are read when they first come.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.rows import sha256_json
from adapters.types import Json

from ..batches import Batch
from ..distillation.cache import SparseTeacher
from ..distillation.divergence import supervised_logits, token_kl
from ..distillation.teacher import BaseTeacher, StartTeacher, Teacher
from ..observer import watch_rows
from .recipe import Context, Recipe
from .settings import Distill


def build(settings: Distill, context: Context) -> Recipe:
    """Weight 0 brings nothing. A cached teacher is read here, once for a run. Raises `Interrupted`."""
    if not settings.weight:
        return Recipe()
    teacher = StartTeacher(context.model) if context.past.start else BaseTeacher(context.model)
    if settings.teacher == "live":
        return Recipe(penalties=(Live(teacher, settings.weight, settings.temperature),))
    started = time.monotonic()
    sparse = cache_teacher(settings, context, teacher)
    penalty = Cached(sparse, settings.weight, settings.temperature)
    return Recipe(penalties=(penalty,), finish={"distill": _Report(sparse, time.monotonic() - started)})


@dataclass(frozen=True, slots=True)
class Live:
    """The whole KL, by a second forward pass; exactly 0 at the start without dropout."""

    teacher: Teacher
    weight: float
    temperature: float
    name: str = "distill"

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        theirs = supervised_logits(self.teacher(batch), batch)
        divergence = token_kl(theirs, supervised_logits(logits, batch), self.temperature)
        return self.weight * self.temperature**2 * divergence.mean()


@dataclass(frozen=True, slots=True)
class Cached:
    """The KL's unbiased estimate from the teacher's draws."""

    teacher: SparseTeacher
    weight: float
    temperature: float
    name: str = "distill"

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        drawn = self.teacher.look_up(batch)
        scaled = supervised_logits(logits, batch) / self.temperature
        logprobs = scaled.gather(1, drawn.ids.long()) - scaled.logsumexp(dim=1, keepdim=True)
        return self.weight * self.temperature**2 * (drawn.logprobs.float() - logprobs).mean()


def cache_teacher(settings: Distill, context: Context, teacher: Teacher) -> SparseTeacher:
    """The teacher's draws for the run's own rows, from `context.cache` where they lie already."""
    sparse = SparseTeacher(
        teacher,
        temperature=settings.temperature,
        draws=settings.draws,
        seed=context.seed,
        pad_token=context.loaded.pad_token,
    )
    shape = [settings.temperature, settings.draws, context.seed]
    key = sha256_json([context.loaded.base.fingerprint, teacher.digest, shape])
    file = context.cache / f"distill-{key[:16]}.safetensors"
    if file.is_file():
        sparse.load(file)
        return sparse
    watch = watch_rows(context.observer, "the teacher", len(context.examples))
    sparse.fill(context.examples, context.batch_tokens, watch)
    sparse.save(file)
    return sparse


@dataclass(frozen=True, slots=True)
class _Report:
    teacher: SparseTeacher
    seconds: float

    def __call__(self, model: Any, folder: Path) -> Json:
        return {
            "positions": self.teacher.positions,
            "rows_read_late": self.teacher.met_late,
            "seconds": round(self.seconds, 2),
        }
