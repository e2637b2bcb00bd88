"""Score a model on a file, item by item: one teacher-forced pass for the NLL, and what the metric needs beside it.

Metrics of text decode greedily, `choice` compares given answers, `perplexity` needs the NLL alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, StoppingCriteriaList

from adapters.evidence import Score

from .batches import collate, group_by_length
from .choices import choose, fill_choices
from .config import AssessConfig, ScoredMetric, TrainConfig
from .data import ChatTokenizer, Encoded
from .metrics import answer_limit, can_still_match, mean_probability, score_text, scores_text
from .model import LoadedBase
from .objective import predict, token_nll

BATCH_TOKENS = 4096
BATCH_ROWS = 64


@dataclass(frozen=True, slots=True)
class Scored:
    """One item's score and what the model wrote; with exact match it stops writing once it is wrong.

    With `choice` the output is the likeliest choice, with `perplexity` it is empty.
    """

    score: Score
    output: str


@dataclass(frozen=True, slots=True)
class Evaluator:
    """Scores whatever `model` computes at the time, adapter on or off. Draws no random numbers.

    `max_new_tokens` defaults to twice the longest answer among the items, and at least 16.
    """

    model: Any
    tokenizer: ChatTokenizer
    end_tokens: frozenset[int]
    pad_token: int
    metric: ScoredMetric
    max_new_tokens: int | None = None
    batch_rows: int = BATCH_ROWS

    def score(self, items: Sequence[Encoded], on_batch: Callable[[int], None] | None = None) -> list[Scored]:
        """One `Scored` per item, in the items' order. `on_batch` hears how many items are done."""
        self.model.eval()
        items = fill_choices(items) if self.metric == "choice" else items
        longest = max(len(item.completion) for item in items)
        limit = self.max_new_tokens or answer_limit(longest)
        scored: dict[int, Scored] = {}
        with torch.no_grad():
            for indices in self._batches(items):
                batch = [items[index] for index in indices]
                nlls = self._target_nll(batch)
                answered = self._answers(batch, nlls, limit)
                for index, nll, (value, output) in zip(indices, nlls, answered, strict=True):
                    scored[index] = Scored(Score(value, nll, len(items[index].completion)), output)
                if on_batch:
                    on_batch(len(scored))
        return [scored[index] for index in range(len(items))]

    def _batches(self, items: Sequence[Encoded]) -> Iterator[list[int]]:
        """Items of like length together: a batch decodes as long as its longest answer."""
        for group in group_by_length(range(len(items)), [len(item) for item in items], BATCH_TOKENS):
            for start in range(0, len(group), self.batch_rows):
                yield group[start : start + self.batch_rows]

    def _target_nll(self, items: Sequence[Encoded]) -> list[float]:
        """Mean nats per target token of each item, the end of the turn included."""
        batch = collate(items, self.pad_token).to(self.model.device)
        sums = token_nll(predict(self.model, batch), batch).sum(dim=1)
        return [float(total) / len(item.completion) for total, item in zip(sums, items, strict=True)]

    def _answers(self, items: Sequence[Encoded], nlls: Sequence[float], limit: int) -> list[tuple[float, str]]:
        """Each item's score and what the model said."""
        metric = self.metric
        if scores_text(metric):
            outputs = self._generate(items, limit)
            return [(score_text(metric, text, item.answer), text) for text, item in zip(outputs, items, strict=True)]
        if metric == "choice":
            chosen = choose(self.model, self.tokenizer, self.end_tokens, self.pad_token, items)
            return [(float(one.right), one.text) for one in chosen]
        return [(mean_probability(nll), "") for nll in nlls]

    def _generate(self, items: Sequence[Encoded], limit: int) -> list[str]:
        generated = greedy(self.model, items, self.pad_token, limit, self._stopping(items))
        return [self._text(tokens) for tokens in generated.tolist()]

    def _stopping(self, items: Sequence[Encoded]) -> StoppingCriteriaList:
        if self.metric != "exact_match":
            return StoppingCriteriaList()
        longest = max(len(item.prompt) for item in items)
        return StoppingCriteriaList([_WrongAlready(self._text, [item.answer for item in items], longest)])

    def _text(self, tokens: Sequence[int]) -> str:
        end = next((index for index, token in enumerate(tokens) if token in self.end_tokens), len(tokens))
        return self.tokenizer.decode(tokens[:end], skip_special_tokens=True)


def make_evaluator(config: AssessConfig | TrainConfig, model: Any, loaded: LoadedBase) -> Evaluator:
    """An evaluator of `model` as the configuration wants it."""
    return Evaluator(model, loaded.tokenizer, loaded.end_tokens, loaded.pad_token, config.metric, config.max_new_tokens)


def greedy(
    model: Any, items: Sequence[Encoded], pad_token: int, limit: int, stopping: StoppingCriteriaList | None = None
) -> Tensor:
    """Most likely continuations of the prompts, shape (items, ≤ limit); after its end a row holds padding."""
    longest = max(len(item.prompt) for item in items)
    ids = torch.tensor([[pad_token] * (longest - len(item.prompt)) + [*item.prompt] for item in items])
    mask = torch.tensor([[0] * (longest - len(item.prompt)) + [1] * len(item.prompt) for item in items])
    sequences: Tensor = model.generate(
        input_ids=ids.to(model.device),
        attention_mask=mask.to(model.device),
        do_sample=False,
        max_new_tokens=limit,
        stopping_criteria=stopping or StoppingCriteriaList(),
    )
    return sequences[:, longest:]


class _WrongAlready(StoppingCriteria):
    """Ends a row as soon as its text cannot become the answer: the score is 0 whatever would follow."""

    def __init__(self, text: Callable[[Sequence[int]], str], answers: Sequence[str], prompt_length: int) -> None:
        self._text = text
        self._answers = answers
        self._prompt_length = prompt_length
        self._wrong = [False] * len(answers)

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        for index, tokens in enumerate(input_ids[:, self._prompt_length :].tolist()):
            if not self._wrong[index]:
                self._wrong[index] = not can_still_match(self._text(tokens), self._answers[index])
        return torch.tensor(self._wrong, device=input_ids.device)
