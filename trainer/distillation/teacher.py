"""Frozen models to read from while another is trained: the base, and the adapter a run started with.

Both are the student's own model: no second copy of the base is held.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.func import functional_call

from ..batches import Batch, collate, group_by_length
from ..data import Encoded
from ..modes import evaluation_mode
from ..objective import predict, token_nll
from ..observer import Observer, watch_rows


class Teacher(Protocol):
    """Something frozen that predicts."""

    @property
    def digest(self) -> str:
        """Changes with everything but the base that determines what this teacher predicts."""

    def __call__(self, batch: Batch) -> Tensor:
        """Logits (examples, predicted, vocabulary), float32, no gradient, dropout off: as `objective.predict`.

        May be called while a graph of the student is alive: leaves parameters, mode and random numbers as they were.
        """


class BaseTeacher:
    """The base: the student's model with its adapter disabled."""

    digest = "base"

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, batch: Batch) -> Tensor:
        with frozen(self._model), self._model.disable_adapter():
            return predict(self._model, batch.to(self._model.device))


class StartTeacher:
    """The model as it is now: its trainable weights are copied, and put in the place of the student's for a pass.

    The student's own tensors are not written to, so the gradient of a graph made before the pass stays right.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._weights = {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}

    @property
    def digest(self) -> str:
        digest = hashlib.sha256()
        for name, weight in sorted(self._weights.items()):
            digest.update(f"{name} {tuple(weight.shape)} ".encode())
            digest.update(weight.float().cpu().numpy().tobytes())
        return digest.hexdigest()

    def __call__(self, batch: Batch) -> Tensor:
        def started(**inputs: object) -> Any:
            return functional_call(self._model, self._weights, args=(), kwargs=inputs)

        with frozen(self._model):
            return predict(started, batch.to(self._model.device))


@contextlib.contextmanager
def frozen(model: Any) -> Iterator[None]:
    """Evaluation mode without gradients; every module's mode is put back."""
    with evaluation_mode(model), torch.no_grad():
        yield


def read_batches(examples: Sequence[Encoded], batch_tokens: int, pad_token: int) -> Iterator[tuple[list[int], Batch]]:
    """All examples once, like lengths together, with their indices. Every completion token is supervised, `dropped`
    ones too.
    """
    whole = [replace(example, dropped=frozenset()) for example in examples]
    for indices in group_by_length(range(len(whole)), [len(example) for example in whole], batch_tokens):
        yield indices, collate([whole[index] for index in indices], pad_token)


def completion_nlls(
    model: Any, examples: Sequence[Encoded], batch_tokens: int, pad_token: int, observer: Observer
) -> list[Tensor]:
    """−log p of every completion token in nats under `model` as it is, dropout off: per example (completion,).
    Raises `Interrupted`.
    """
    on_rows = watch_rows(observer, "the start", len(examples))
    nlls: dict[int, Tensor] = {}
    with frozen(model):
        for indices, padded in read_batches(examples, batch_tokens, pad_token):
            batch = padded.to(model.device)
            found = token_nll(predict(model, batch), batch).cpu()
            for index, one in zip(indices, found, strict=True):
                nlls[index] = one[-len(examples[index].completion) :].clone()
            on_rows(len(nlls))
    return [nlls[index] for index in range(len(examples))]
