"""Exact match and target NLL from one teacher-forced pass: what greedy decoding would find, without decoding.

If at every supervised position, the end of the turn included, the likeliest token given the *wanted* prefix is the
wanted token, then greedy decoding writes exactly the answer; if not, it leaves it at the first such position. Only an
answer whose text has two spellings in tokens may be right in other tokens: `compare_with_decoding` counts such cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..batches import IGNORED, Batch, collate, group_by_length
from ..data import Encoded
from ..distillation.divergence import supervised_logits, token_kl
from ..evaluate import Evaluator
from ..model import LoadedBase
from ..objective import predict, token_nll

ScoringPrecision = Literal["float32", "bfloat16"]
BATCH_TOKENS = 2048


@dataclass(frozen=True, slots=True)
class Forced:
    """One item: whether every supervised token is the likeliest, and the mean NLL in nats per supervised token."""

    exact: bool
    nll: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often the teacher-forced exact match is that of real greedy decoding; `differ` are the items' rows."""

    items: int
    differ: tuple[str, ...]

    @property
    def share(self) -> float:
        return 1 - len(self.differ) / self.items


def score_forced(
    model: Any,
    items: Sequence[Encoded],
    pad_token: int,
    precision: ScoringPrecision = "float32",
    on_batch: Callable[[int], None] | None = None,
) -> list[Forced]:
    """One `Forced` per item, in order, for whatever `model` computes now; leaves it in evaluation mode."""
    model.eval()
    scored: dict[int, Forced] = {}
    for indices in group_by_length(range(len(items)), [len(item) for item in items], BATCH_TOKENS):
        batch = collate([items[index] for index in indices], pad_token).to(model.device)
        with torch.no_grad(), autocast(model, precision):
            logits = predict(model, batch)
        scored |= zip(indices, _forced(logits, batch), strict=True)
        if on_batch:
            on_batch(len(scored))
    return [scored[index] for index in range(len(items))]


def mean_kl(
    model: Any,
    reference: Callable[[], AbstractContextManager[object]],
    items: Sequence[Encoded],
    pad_token: int,
) -> float:
    """KL(p_reference ‖ p) in nats, the mean over all supervised positions of `items`, teacher-forced, float32.

    Inside `reference()` the model computes p_reference, outside of it p.
    """
    model.eval()
    total, count = 0.0, 0
    for indices in group_by_length(range(len(items)), [len(item) for item in items], BATCH_TOKENS):
        batch = collate([items[index] for index in indices], pad_token).to(model.device)
        with torch.no_grad():
            with reference():
                before = supervised_logits(predict(model, batch), batch)
            divergence = token_kl(before, supervised_logits(predict(model, batch), batch))
        total += float(divergence.sum(dtype=torch.float64))
        count += len(divergence)
    return total / count


def compare_with_decoding(model: Any, loaded: LoadedBase, items: Sequence[Encoded]) -> Agreement:
    """Decode `items` greedily and compare with their teacher-forced exact match."""
    forced = score_forced(model, items, loaded.pad_token)
    evaluator = Evaluator(model, loaded.tokenizer, loaded.end_tokens, loaded.pad_token, "exact_match")
    decoded = evaluator.score(items)
    differ = [
        item.row
        for item, mine, theirs in zip(items, forced, decoded, strict=True)
        if mine.exact != bool(theirs.score.score)
    ]
    return Agreement(len(items), tuple(differ))


def autocast(model: Any, precision: ScoringPrecision) -> AbstractContextManager[object]:
    """bfloat16 matrix products where asked for; the log-softmax stays float32 in any case."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(model.device.type, dtype=torch.bfloat16)


def _forced(logits: Tensor, batch: Batch) -> list[Forced]:
    labels = batch.labels[:, -logits.shape[1] :]
    supervised = labels != IGNORED
    right = ((logits.argmax(dim=-1) == labels) | ~supervised).all(dim=1)
    nll = token_nll(logits, batch).sum(dim=1) / supervised.sum(dim=1)
    return [Forced(exact, value) for exact, value in zip(right.tolist(), nll.tolist(), strict=True)]
