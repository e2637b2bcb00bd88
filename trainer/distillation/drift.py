"""How far a model has moved from where it started, measured: KL(p_start ‖ p) in nats per supervised token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..batches import collate, group_by_length
from ..data import Encoded
from ..modes import evaluation_mode
from ..objective import predict
from .divergence import supervised_logits, token_kl


class Drift:
    """Remembers what `model` says now on `examples`, and tells how far another state of it is from that.

    Only supervised positions count; prefixes are the examples' own. Keeps T · vocabulary numbers in memory.
    """

    def __init__(self, model: Any, examples: Sequence[Encoded], pad_token: int, batch_tokens: int) -> None:
        groups = group_by_length(range(len(examples)), [len(one) for one in examples], batch_tokens)
        self._batches = [collate([examples[index] for index in group], pad_token) for group in groups]
        self._start = self._predict(model)

    def measure(self, model: Any) -> float:
        """KL(p_start ‖ p), exactly 0 where nothing changed. Leaves modes, gradients and random state as they were."""
        pairs = zip(self._start, self._predict(model), strict=True)
        return float(torch.cat([token_kl(start, now) for start, now in pairs]).mean())

    @torch.no_grad()
    def _predict(self, model: Any) -> list[Tensor]:
        device = next(model.parameters()).device
        with evaluation_mode(model):
            moved = [batch.to(device) for batch in self._batches]
            return [supervised_logits(predict(model, batch), batch) for batch in moved]
