"""An exponential moving average of the adapter's weights, kept and judged in place of the latest ones.

    m_t = d·m_{t−1} + (1 − d)·w_t,   average = m_t / (1 − dᵗ)

The division is Adam's bias correction (Kingma & Ba 2015, arXiv:1412.6980): without it early averages lean to the
start. Training itself sees nothing of it. Averaging one run's iterates: Polyak & Juditsky 1992; Izmailov et al. 2018
(arXiv:1803.05407).

A and B are averaged apart, which is not the average of ΔW = s·B·A. With the weights c_i of the average

    Σ c_i B_i A_i − (Σ c_i B_i)(Σ c_i A_i) = Σ_{i<j} c_i c_j (B_i − B_j)(A_i − A_j)

The exact average has a rank of up to rank × steps and fits no adapter of this rank. The difference is of second order
in how far the averaged iterates lie apart, so the form is sound along one path, and wrong between separate runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.types import Json

from ..batches import Batch
from .recipe import Context, Recipe
from .settings import Ema


def build(settings: Ema, context: Context) -> Recipe:
    average = MovingAverage(settings.decay)
    return Recipe(hooks=(average,), finish={settings.method: average.finish})


class MovingAverage:
    """The average of every trainable parameter over the steps taken so far, in float32."""

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._steps = 0
        self._average: dict[str, Tensor] = {}
        self._distance = 0.0

    def before_step(self, model: Any, micro_batches: Sequence[Batch]) -> None:
        """Nothing."""

    def after_step(self, model: Any) -> None:
        self._steps += 1
        share = (1 - self._decay) / (1 - self._decay**self._steps)
        for name, parameter in trainable(model).items():
            weights = parameter.detach().float()
            before = self._average.get(name)
            self._average[name] = weights.clone() if before is None else torch.lerp(before, weights, share)

    @contextmanager
    def averaged(self, model: Any) -> Iterator[None]:
        """While it lasts `model` carries the average (before any step: its own weights); then its own, bit for bit."""
        parameters = trainable(model)
        own = {name: parameters[name].detach().clone() for name in self._average}
        self._distance = relative_distance(self._average, own)
        try:
            _copy(self._average, parameters)
            yield
        finally:
            _copy(own, parameters)

    def state(self) -> Mapping[str, Any]:
        return {"steps": self._steps, "average": dict(self._average), "distance": self._distance}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._steps, self._distance = state["steps"], state["distance"]
        self._average = {name: tensor.clone() for name, tensor in state["average"].items()}

    def finish(self, model: Any, folder: Path) -> Json:
        """How far the average last lay from the weights of its step, relative to their norm."""
        return {"steps": self._steps, "distance_from_latest": self._distance}


def relative_distance(average: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> float:
    """‖average − weights‖ / ‖weights‖ over all parameters together; 0 where there are none."""
    apart = sum(float((one - weights[name]).square().sum()) for name, one in average.items())
    norm = sum(float(weights[name].square().sum()) for name in average)
    return (apart / norm) ** 0.5 if norm else 0.0


def trainable(model: Any) -> dict[str, Tensor]:
    """The parameters that the optimiser moves, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _copy(source: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in source.items():
            target[name].copy_(tensor)
