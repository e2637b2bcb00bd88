"""What the adapter makes likely on a few prompts, so that an engine can later prove that it applies the adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from adapters.types import Json

from .batches import collate
from .data import Encoded
from .evaluate import greedy
from .objective import predict, token_nll

PROMPTS = 8
TOKENS = 8


def take_probe(model: Any, examples: Sequence[Encoded], pad_token: int) -> Json:
    """Greedy continuations (≤ `TOKENS` tokens) under the adapter, with the log-probability (nats, float32) of each
    of their tokens under the adapter and under the base. An engine that scores like the base applies nothing.
    """
    model.eval()
    chosen = examples[:PROMPTS]
    with torch.no_grad():
        prompts = [_probe_one(model, example, pad_token) for example in chosen]
    return {"dtype": "float32", "prompts": prompts}


def _probe_one(model: Any, example: Encoded, pad_token: int) -> dict[str, object]:
    tokens = [int(token) for token in greedy(model, [example], pad_token, TOKENS)[0]]
    adapter = _logprobs(model, example, tokens, pad_token)
    with model.disable_adapter():
        base = _logprobs(model, example, tokens, pad_token)
    return {
        "messages": [asdict(message) for message in example.messages],
        "prompt_tokens": list(example.prompt),
        "tokens": tokens,
        "logprobs": adapter.tolist(),
        "base_logprobs": base.tolist(),
    }


def _logprobs(model: Any, example: Encoded, tokens: Sequence[int], pad_token: int) -> Tensor:
    continued = Encoded(example.row, example.prompt, tuple(tokens), example.messages, example.answer)
    batch = collate([continued], pad_token).to(model.device)
    return -token_nll(predict(model, batch), batch)[0].cpu()
