"""Choose among given answers by their log-probability, in the trainer's own forward pass.

    score(c) = Σ_t log p(c_t | prompt, c_<t),  the token that ends the turn included

The sum, not the mean per token: with the end of the turn in it, it is the log-probability that the model writes exactly
this answer, so the highest one is what the model would most likely say if it may say nothing else. Dividing by the
length would prefer long answers whose later tokens follow from the first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from adapters.evidence import Metric
from adapters.rows import Example

from .batches import group_by_length
from .data import ChatTokenizer, Dataset, Encoded, encode
from .errors import DataInvalid

PAIR_TOKENS = 8192  # cached prompt and answer tokens of all pairs of one pass
MAX_CHOICES = 256


@dataclass(frozen=True, slots=True)
class Choices:
    """One item's candidate answers as `texts` and, each with the end of its turn, as token ids."""

    prompt: tuple[int, ...]
    texts: tuple[str, ...]
    completions: tuple[tuple[int, ...], ...]

    @property
    def cost(self) -> int:
        """Tokens that all its pairs of prompt and answer hold."""
        return len(self.texts) * (len(self.prompt) + max(len(one) for one in self.completions))


@dataclass(frozen=True, slots=True)
class Chosen:
    """The likeliest choice, and whether it is the right one; a tie with another answer is not right."""

    text: str
    right: bool


def fill_choices(items: Sequence[Encoded]) -> list[Encoded]:
    """The items, those that name no choices with all answers of `items`.

    Raises `DataInvalid` where that leaves fewer than two choices, or more than `MAX_CHOICES`.
    """
    answers = tuple(sorted({item.answer for item in items}))
    filled = [item if item.choices else replace(item, choices=answers) for item in items]
    counts = {len(item.choices) for item in filled}
    if min(counts) < 2 or max(counts) > MAX_CHOICES:
        raise DataInvalid(
            f"choice: between {min(counts)} and {max(counts)} answers to choose among, expected 2 to {MAX_CHOICES}",
            hint='give rows "choices", or another metric',
        )
    return filled


def require_choices(metric: Metric, datasets: Sequence[Dataset]) -> None:
    """Refuse at once what `choice` could not score; raises `DataInvalid` for the first data set it is so with."""
    for dataset in datasets if metric == "choice" else ():
        try:
            fill_choices(dataset.examples)
        except DataInvalid as error:
            raise DataInvalid(f"{dataset.name}: {error.message}", hint=error.hint) from error


def choose(
    model: Any, tokenizer: ChatTokenizer, end_tokens: frozenset[int], pad_token: int, items: Sequence[Encoded]
) -> list[Chosen]:
    """The likeliest choice of each item. Draws no random numbers; runs without gradient."""
    prepared = _prepare(tokenizer, end_tokens, items)
    logprobs: dict[int, list[float]] = {}
    for indices in group_by_length(range(len(items)), [one.cost for one in prepared], PAIR_TOKENS):
        found = choice_logprobs(model, [prepared[index] for index in indices], pad_token)
        logprobs |= dict(zip(indices, found, strict=True))
    return [_chosen(item, logprobs[index]) for index, item in enumerate(items)]


@torch.no_grad()
def choice_logprobs(model: Any, items: Sequence[Choices], pad_token: int) -> list[list[float]]:
    """log p of each choice of each item, in nats. A prompt is read once, its keys and values serve all its choices."""
    longest = max(len(item.prompt) for item in items)
    ids = torch.tensor([[pad_token] * (longest - len(item.prompt)) + [*item.prompt] for item in items])
    mask = torch.tensor([[0] * (longest - len(item.prompt)) + [1] * len(item.prompt) for item in items])
    ids, mask = ids.to(model.device), mask.to(model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    read = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    pairs = [(index, completion) for index, item in enumerate(items) for completion in item.completions]
    owner = torch.tensor([index for index, _ in pairs], device=model.device)
    sums = _continue(model, read, mask, owner, [completion for _, completion in pairs], pad_token).tolist()
    return [[sums.pop(0) for _ in item.completions] for item in items]


def _continue(
    model: Any, read: Any, mask: Tensor, owner: Tensor, completions: Sequence[Sequence[int]], pad_token: int
) -> Tensor:
    """Σ_t log p of each completion after the prompt that `owner` gives it, shape (completions,)."""
    longest = max(len(one) for one in completions)
    padded = [[*one] + [pad_token] * (longest - len(one)) for one in completions]
    targets = torch.tensor(padded, device=owner.device)
    lengths = torch.tensor([len(one) for one in completions], device=owner.device)
    real = torch.arange(longest, device=owner.device) < lengths[:, None]
    logits = read.logits[owner]
    if longest > 1:
        cache = read.past_key_values
        cache.batch_select_indices(owner)
        seen = torch.cat([mask[owner], real[:, :-1].long()], dim=1)
        positions = (seen.cumsum(dim=1) - 1)[:, mask.shape[1] :]
        rest = model(
            input_ids=targets[:, :-1],
            attention_mask=seen,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
        )
        logits = torch.cat([logits, rest.logits], dim=1)
    logprobs = logits.float().log_softmax(-1).gather(-1, targets[:, :, None]).squeeze(-1)
    totals: Tensor = (logprobs * real).sum(dim=1)
    return totals


def _prepare(tokenizer: ChatTokenizer, end_tokens: frozenset[int], items: Sequence[Encoded]) -> list[Choices]:
    examples = [Example(item.messages, text) for item in items for text in item.choices]
    encoded = iter(encode(tokenizer, examples, end_tokens))
    return [Choices(item.prompt, item.choices, tuple(next(encoded).completion for _ in item.choices)) for item in items]


def _chosen(item: Encoded, logprobs: Sequence[float]) -> Chosen:
    best = max(logprobs)
    winners = [text for text, logprob in zip(item.choices, logprobs, strict=True) if logprob == best]
    return Chosen(winners[0], winners == [item.answer])
