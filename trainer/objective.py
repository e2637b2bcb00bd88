"""What is minimised: cross entropy plus named penalties, every term a mean in nats per supervised token.

    L = − (1/T) Σ_t log p(y_t | y_<t)  +  Σ_k penalty_k

T is the number of supervised tokens. A penalty brings its own weight and is, like the cross entropy, a mean per
supervised token of the batch, or does not depend on the batch at all. Then a step over several micro-batches
of T_m tokens is Σ_m (T_m / Σ T_m) · L_m: the exact loss of the whole, whatever the split, each penalty counted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from .batches import IGNORED, Batch
from .errors import NoSupervisedTokens


@dataclass(frozen=True, slots=True)
class Loss:
    """`total` is differentiable, in nats per supervised token; `parts` holds each term's value by name."""

    total: Tensor
    parts: Mapping[str, float]


class Penalty(Protocol):
    """A term that is added to the loss."""

    @property
    def name(self) -> str:
        """What the term is called in reports."""

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        """A differentiable scalar in nats per supervised token, weight included.

        `logits` (examples, predicted, vocabulary, float32) belong to the last `predicted` columns of
        `batch.labels`: `logits[:, t]` predicts `batch.labels[:, -predicted + t]`. May run further forward passes;
        leaves the model's parameters, its mode and torch's global generator as they were. What it remembers from
        step to step it changes as a hook: of several processes each calls this for its own micro-batches only.
        """


class Objective:
    """Cross entropy on the supervised tokens plus any penalties."""

    def __init__(self, penalties: Sequence[Penalty] = ()) -> None:
        self._penalties = tuple(penalties)

    def __call__(self, model: Any, batch: Batch) -> Loss:
        """Raises `NoSupervisedTokens` for a batch whose labels are all masked."""
        if not batch.supervised:
            raise NoSupervisedTokens("a batch has no supervised token", hint="look at the masks of the batch source")
        logits = predict(model, batch)
        terms = {"cross_entropy": token_nll(logits, batch).sum() / batch.supervised}
        for penalty in self._penalties:
            terms[penalty.name] = penalty(model, batch, logits)
        total = torch.stack(list(terms.values())).sum()
        return Loss(total, {name: float(term.detach()) for name, term in terms.items()})


def predict(model: Any, batch: Batch) -> Tensor:
    """Logits (examples, predicted, vocabulary) in float32 for the last `batch.predicted` labels."""
    output = model(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        logits_to_keep=batch.predicted + 1,
    )
    logits: Tensor = output.logits[:, -batch.predicted - 1 : -1]
    return logits.float()


def token_nll(logits: Tensor, batch: Batch) -> Tensor:
    """−log p of each supervised token in nats, shape (examples, predicted); 0 where nothing is supervised."""
    labels = batch.labels[:, -logits.shape[1] :]
    flat = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none")
    return flat.view(labels.shape)
