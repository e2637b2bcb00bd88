"""Learning rate as a pure function of progress: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass

from .config import Schedule


@dataclass(frozen=True, slots=True)
class Budget:
    """When a run ends: after `steps` optimiser steps, `tokens` non-padding tokens or `seconds` of training, whichever
    comes first.
    """

    steps: int
    seconds: float | None = None
    tokens: int | None = None

    def progress(self, step: int, seconds: float, tokens: int = 0) -> float:
        """The share of the budget that is used up, from 0 to 1. With `seconds` it depends on the machine's speed."""
        spent = seconds / self.seconds if self.seconds else 0.0
        read = tokens / self.tokens if self.tokens else 0.0
        return min(1.0, max(step / self.steps, spent, read))


@dataclass(frozen=True, slots=True)
class LearningRate:
    """Linear warm-up over the share `warmup` of the run, then `schedule` down to 0 (or constant)."""

    peak: float
    schedule: Schedule
    warmup: float

    def at(self, progress: float, step: int) -> float:
        """The rate for the step that starts at `progress`. The very first steps are never at rate 0."""
        if progress < self.warmup:
            return self.peak * max(progress / self.warmup, 1 / (step + 2))
        decay = (progress - self.warmup) / (1 - self.warmup)
        factors = {"constant": 1.0, "linear": 1 - decay, "cosine": (1 + math.cos(math.pi * decay)) / 2}
        return self.peak * factors[self.schedule]
