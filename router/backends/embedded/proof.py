"""Proof that an adapter is applied: what the model says after it must differ from what the base says.

Adapter and base answer the same prompts greedily, as rows of the same batches as the traffic. The difference must be
over what the base differs from itself, which is only the noise of another batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

PROBES = ("Hello, who are you?", "List three facts about 7 apples and one table named orders.")
PROBE_TOKENS = 4
FLOOR = 1e-5  # nats; a zero update adds exactly zero, so all that lies under this is rounding


@dataclass(slots=True)
class Trace:
    """The tokens of one greedy answer and the log-probabilities [vocabulary] each was chosen from."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[Tensor] = field(default_factory=list)

    def watch(self, logits: Tensor, token: int) -> None:
        self.tokens.append(token)
        self.logprobs.append(torch.log_softmax(logits, dim=-1))


def distance(first: Sequence[Trace], second: Sequence[Trace]) -> float:
    """The largest difference of log-probabilities in nats, over the steps before which the answers agree."""
    return max(_distance(one, other) for one, other in zip(first, second, strict=True))


def is_applied(adapter: Sequence[Trace], base: Sequence[Trace], base_again: Sequence[Trace]) -> bool:
    """Whether the adapter's answers are further from the base's than the base's from its own repeat."""
    return distance(adapter, base) > FLOOR + 2 * distance(base, base_again)


def _distance(first: Trace, second: Trace) -> float:
    largest = 0.0
    for index, (one, other) in enumerate(zip(first.logprobs, second.logprobs, strict=False)):
        largest = max(largest, float((one - other).abs().max()))
        if first.tokens[index] != second.tokens[index]:
            break
    return largest
