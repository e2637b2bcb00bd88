"""What a model says about rows that may be remembered: how they rank, and how the base would answer them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..batches import group_by_length
from ..data import Encoded
from ..distillation.teacher import completion_nlls, frozen
from ..evaluate import BATCH_ROWS, greedy
from ..methods.settings import Selection
from ..metrics import answer_limit
from ..model import LoadedBase
from ..observer import Observer, watch_rows
from .memory import diverse, hardest, shuffled


@dataclass(frozen=True, slots=True)
class Reader:
    """The model of a run and how to read it. `model` carries the starting weights. Reading raises `Interrupted`."""

    loaded: LoadedBase
    model: Any
    seed: int
    batch_tokens: int
    observer: Observer

    def rank(self, examples: Sequence[Encoded], selection: Selection, count: int) -> list[int]:
        """Indices of all `examples` by priority. `count` is the most of them that were ever kept: k-means' k."""
        random_order = shuffled([f"{one.row}/{one.completion}" for one in examples], self.seed)
        if selection == "diverse":
            return diverse(self.embed_prompts(examples), count, random_order, self.seed)
        if selection == "difficult":
            nlls = completion_nlls(self.model, examples, self.batch_tokens, self.loaded.pad_token, self.observer)
            return hardest([float(one.mean()) for one in nlls], random_order)
        return random_order

    def embed_prompts(self, examples: Sequence[Encoded]) -> NDArray[np.float32]:
        """Last hidden states of the base, adapter disabled, mean over each prompt's tokens: (examples, hidden)."""
        found: dict[int, NDArray[np.float32]] = {}
        on_rows = watch_rows(self.observer, "prompts to remember", len(examples))
        with frozen(self.model), self.model.disable_adapter():
            for group in group_by_length(
                range(len(examples)), [len(one.prompt) for one in examples], self.batch_tokens
            ):
                ids, mask = self._padded([examples[index].prompt for index in group])
                output = self.loaded.model.base_model(input_ids=ids, attention_mask=mask, use_cache=False)
                weight = mask.unsqueeze(-1).float()
                means = (output.last_hidden_state.float() * weight).sum(dim=1) / weight.sum(dim=1)
                found.update(zip(group, means.cpu().numpy(), strict=True))
                on_rows(len(found))
        return np.stack([found[index] for index in range(len(examples))])

    def answer_by_base(self, examples: Sequence[Encoded]) -> list[tuple[int, ...]]:
        """What the base writes after each prompt, greedily, its end token included; at most twice the longest answer
        among `examples`, and cut there without an end token.
        """
        on_rows = watch_rows(self.observer, "the base's own answers", len(examples))
        longest = max(len(one.completion) for one in examples)
        room = self.loaded.context_length - max(len(one.prompt) for one in examples)
        limit = max(1, min(room, answer_limit(longest)))
        written: dict[int, tuple[int, ...]] = {}
        order = sorted(range(len(examples)), key=lambda index: len(examples[index].prompt))
        with frozen(self.model), self.model.disable_adapter():
            for start in range(0, len(order), BATCH_ROWS):
                group = order[start : start + BATCH_ROWS]
                tokens = greedy(self.model, [examples[index] for index in group], self.loaded.pad_token, limit)
                written.update((index, self._ended(row)) for index, row in zip(group, tokens.tolist(), strict=True))
                on_rows(len(written))
        return [written[index] for index in range(len(examples))]

    def _ended(self, tokens: list[int]) -> tuple[int, ...]:
        end = next((at for at, token in enumerate(tokens) if token in self.loaded.end_tokens), len(tokens))
        return tuple(tokens[: end + 1])

    def _padded(self, prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        longest = max(len(prompt) for prompt in prompts)
        ids = [[*prompt] + [self.loaded.pad_token] * (longest - len(prompt)) for prompt in prompts]
        mask = [[1] * len(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
        return torch.tensor(ids, device=self.model.device), torch.tensor(mask, device=self.model.device)
