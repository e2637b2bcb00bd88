"""How far a model has moved from where it started, measured: KL(p_start ‖ p) in nats per supervised token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..batches import Batch, collate, group_by_length
from ..data import Encoded
from ..objective import predict
from .divergence import supervised_logits, token_kl
from .teacher import StartTeacher, frozen


class Drift:
    """Remembers the weights that `model` trains, and tells how far another state of it is from them on `examples`.

    Only supervised positions count; prefixes are the examples' own. The start is read again at every measurement:
    what it says would be T · vocabulary numbers to keep, its adapter is a few.
    """

    def __init__(self, model: Any, examples: Sequence[Encoded], pad_token: int, batch_tokens: int) -> None:
        groups = group_by_length(range(len(examples)), [len(one) for one in examples], batch_tokens)
        self._batches = [collate([examples[index] for index in group], pad_token) for group in groups]
        self._start = StartTeacher(model)

    def measure(self, model: Any) -> float:
        """KL(p_start ‖ p), exactly 0 where nothing changed. Leaves modes, gradients and random state as they were."""
        device = next(model.parameters()).device
        return float(torch.cat([self._divergence(model, batch.to(device)) for batch in self._batches]).mean())

    def _divergence(self, model: Any, batch: Batch) -> Tensor:
        with frozen(model):
            now = predict(model, batch)
        return token_kl(supervised_logits(self._start(batch), batch), supervised_logits(now, batch))
