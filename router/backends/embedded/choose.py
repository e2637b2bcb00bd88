"""The next token of each row: greedy, or drawn from the smallest set of tokens with probability `top_p`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Choice:
    """How one row chooses. `generator` is the row's own, so that its draws do not depend on the rest of the batch."""

    temperature: float
    top_p: float
    generator: torch.Generator


def choose(logits: Tensor, choices: Sequence[Choice]) -> list[int | None]:
    """One token per row of `logits` [rows, vocabulary] (float32), `None` for a row that holds NaN or infinity."""
    best, greedy = logits.max(dim=-1)
    tokens: list[int] = greedy.tolist()
    drawn = [index for index, choice in enumerate(choices) if choice.temperature > 0]
    if drawn:
        for index, token in zip(drawn, _draw(logits[drawn], [choices[index] for index in drawn]), strict=True):
            tokens[index] = token
    finite: list[bool] = torch.isfinite(best).tolist()
    return [token if usable else None for token, usable in zip(tokens, finite, strict=True)]


def _draw(logits: Tensor, choices: Sequence[Choice]) -> list[int]:
    """Nucleus sampling (Holtzman et al., 2020) by inverting the cumulative distribution at one uniform draw per row."""
    device = logits.device
    temperatures = torch.tensor([choice.temperature for choice in choices], device=device)
    top_p = torch.tensor([choice.top_p for choice in choices], device=device)
    uniform = torch.stack([torch.rand((), generator=choice.generator, dtype=torch.float64) for choice in choices])
    ordered, order = (
        (logits / temperatures[:, None]).softmax(dim=-1).double().sort(dim=-1, descending=True, stable=True)
    )
    cumulative = ordered.cumsum(dim=-1)
    kept = (cumulative - ordered < top_p[:, None]).sum(dim=-1, keepdim=True)
    mass = cumulative.gather(-1, kept - 1)
    place = torch.searchsorted(cumulative, uniform.to(device)[:, None] * mass, right=True).clamp(max=kept - 1)
    tokens: list[int] = order.gather(-1, place).squeeze(-1).tolist()
    return tokens
