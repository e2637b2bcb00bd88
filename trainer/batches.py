"""Where batches come from: the seam for replay and curricula."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .data import Encoded
from .errors import CheckpointInvalid

IGNORED = -100
_POOL = 32  # micro-batches whose rows are sorted together: long enough to pad little, short enough to stay shuffled


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded to one length, all tensors of shape (examples, length).

    `labels[i, t]` is the token at t where it is supervised and `IGNORED` elsewhere; the model predicts it at t − 1.
    Rows are padded on the left by default, so that completions end together and logits are needed only there.
    `rows[i]` is the digest of the example in line i, by which a method finds what it keeps about it.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    rows: tuple[str, ...] = ()

    @property
    def position_ids(self) -> Tensor:
        """Positions counted from each row's first real token, so that padding moves nothing."""
        return (self.attention_mask.cumsum(dim=1) - 1).clamp(min=0)

    @property
    def supervised(self) -> int:
        """Number of supervised tokens."""
        return int((self.labels != IGNORED).sum())

    @property
    def tokens(self) -> int:
        """Number of tokens that are not padding."""
        return int(self.attention_mask.sum())

    @property
    def predicted(self) -> int:
        """How many last positions hold every supervised token; at least 1."""
        columns = (self.labels != IGNORED).any(dim=0).nonzero()
        return max(1, self.labels.shape[1] - int(columns[0])) if len(columns) else 1

    def to(self, device: torch.device) -> Batch:
        return Batch(self.input_ids.to(device), self.attention_mask.to(device), self.labels.to(device), self.rows)


class BatchSource(Protocol):
    """An endless stream of micro-batches that can be put back to any point of itself.

    The stream depends on nothing but the source's own arguments and its state: after `restore(state())`
    on a source made with the same arguments the same batches follow.
    """

    def next(self) -> Batch:
        """The next micro-batch. Advances the state."""

    def state(self) -> Mapping[str, int]:
        """Where the stream stands, as numbers that JSON holds."""

    def restore(self, state: Mapping[str, int]) -> None:
        """Go to `state`; raises `CheckpointInvalid` where this source was never there."""


class ShuffledBatches:
    """Every example once per epoch in a shuffled order, examples of like length together."""

    def __init__(self, examples: Sequence[Encoded], *, batch_tokens: int, seed: int, pad_token: int) -> None:
        self._examples = examples
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._pad_token = pad_token
        self._go_to(0, 0)

    @property
    def per_epoch(self) -> int:
        """Micro-batches in the present epoch."""
        return len(self._plan)

    def next(self) -> Batch:
        if self._position == len(self._plan):
            self._go_to(self._epoch + 1, 0)
        chosen = self._plan[self._position]
        self._position += 1
        return collate([self._examples[index] for index in chosen], self._pad_token)

    def state(self) -> Mapping[str, int]:
        return {"epoch": self._epoch, "position": self._position}

    def restore(self, state: Mapping[str, int]) -> None:
        self._go_to(state["epoch"], state["position"])
        if not 0 <= self._position <= len(self._plan):
            raise CheckpointInvalid(
                f"the saved run stands at batch {self._position} of {len(self._plan)}",
                hint="the data changed: start again with a fresh --out",
            )

    def _go_to(self, epoch: int, position: int) -> None:
        lengths = [len(example) for example in self._examples]
        self._epoch, self._position = epoch, position
        self._plan = plan_epoch(lengths, self._batch_tokens, seed=self._seed, epoch=epoch)


def plan_epoch(lengths: Sequence[int], batch_tokens: int, *, seed: int, epoch: int) -> list[list[int]]:
    """Indices of one epoch's micro-batches, a pure function of its arguments.

    Each index once; rows × longest row ≤ `batch_tokens`, but for a single row that is longer by itself.
    """
    draw = random.Random(f"{seed}/{epoch}")  # noqa: S311 - an order of rows, not a secret
    order = list(range(len(lengths)))
    draw.shuffle(order)
    pool_tokens = _POOL * batch_tokens
    batches: list[list[int]] = []
    pool: list[int] = []
    filled = 0
    for index in order:
        if pool and filled + lengths[index] > pool_tokens:
            batches += group_by_length(pool, lengths, batch_tokens)
            pool, filled = [], 0
        pool.append(index)
        filled += lengths[index]
    batches += group_by_length(pool, lengths, batch_tokens)
    draw.shuffle(batches)
    return batches


def group_by_length(indices: Sequence[int], lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Cut `indices`, shortest first, into groups of rows × longest row ≤ `batch_tokens`."""
    groups: list[list[int]] = []
    for index in sorted(indices, key=lambda one: lengths[one]):
        if not groups or (len(groups[-1]) + 1) * lengths[index] > batch_tokens:
            groups.append([])
        groups[-1].append(index)
    return groups


def collate(examples: Sequence[Encoded], pad_token: int) -> Batch:
    """Pad on the left; prompt, padding and each example's `dropped` tokens are not supervised."""
    longest = max(len(example) for example in examples)
    ids, mask, labels = [], [], []
    for example in examples:
        gap = longest - len(example)
        ids.append([pad_token] * gap + [*example.prompt, *example.completion])
        mask.append([0] * gap + [1] * len(example))
        kept = [IGNORED if at in example.dropped else token for at, token in enumerate(example.completion)]
        labels.append([IGNORED] * (gap + len(example.prompt)) + kept)
    rows = tuple(example.row for example in examples)
    return Batch(torch.tensor(ids), torch.tensor(mask), torch.tensor(labels), rows)
