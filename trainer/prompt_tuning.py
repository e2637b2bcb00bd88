"""Prompt tuning: learned vectors before the prompt, the base untouched. An arm of comparisons; engines cannot serve it.

    input embeddings = [P; E(x)],   P (virtual tokens, hidden) trained, E the base's own embedding

Lester et al. 2021 (arXiv:2104.08691). PEFT's model is used with two repairs. PEFT ignores position ids here and lets
the base count padding: with rows padded on the left the distance between P and the text, and with it every logit,
would depend on the longest row of the batch. And its embedding is drawn from torch's global generator.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import torch
from peft import PeftModelForCausalLM, PromptTuningConfig
from torch import Tensor

from .errors import BaseUnusable, ConfigInvalid
from .model import CONFIG_FILE, LoadedBase, load_weights


def add_prompt(loaded: LoadedBase, tokens: int, *, text: str | None = None, seed: int = 0) -> PromptModel:
    """Put `tokens` virtual tokens before every prompt of the base; adapter `default`, trainable.

    They start as the embeddings of `text`, repeated or cut to length, or else of tokens drawn from the vocabulary.
    Nothing is drawn from torch's generator. `predict`, the loop, checkpoints and the evaluator work on it as on LoRA,
    and with the adapter disabled it is the base. `save_adapter` writes it, `load_prompt` reads it. Raises
    `ConfigInvalid` for a number of tokens that cannot be, or a text without a token.
    """
    if not 0 < tokens < loaded.context_length:
        raise ConfigInvalid([f"prompt tuning: {tokens} virtual tokens in a context of {loaded.context_length}"])
    ids = _first_tokens(loaded, tokens, text, seed)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=tokens)
    with torch.random.fork_rng():
        model = PromptModel(loaded.model, config)
    prompt: Any = model.prompt_encoder
    embedding: Tensor = loaded.model.get_input_embeddings().weight
    with torch.no_grad():
        prompt["default"].embedding.weight.copy_(embedding[torch.tensor(ids, device=embedding.device)])
    return model


def load_prompt(loaded: LoadedBase, folder: Path) -> PromptModel:
    """The base with the prompt that `save_adapter` wrote to `folder`. Raises `BaseUnusable` where that is none."""
    try:
        tokens = int(json.loads((folder / CONFIG_FILE).read_text(encoding="utf-8"))["num_virtual_tokens"])
    except (OSError, ValueError, KeyError) as error:
        raise BaseUnusable(
            f"{folder.name} holds no tuned prompt: {' '.join(str(error).split())[:200]}",
            hint="give a folder that prompt tuning wrote",
        ) from error
    model = add_prompt(loaded, tokens)
    load_weights(model, folder)
    return model


class PromptModel(PeftModelForCausalLM):
    """PEFT's prompt tuning with positions counted from the first virtual token, through padding, at every step."""

    def _adjust_prompt_learning_kwargs(
        self, peft_config: Any, *, kwargs: dict[str, Any], remove_token_type_ids: bool = True
    ) -> None:
        given = kwargs.pop("position_ids", None)
        super()._adjust_prompt_learning_kwargs(peft_config, kwargs=kwargs, remove_token_type_ids=remove_token_type_ids)
        if given is None:
            return
        virtual = peft_config.num_virtual_tokens
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            kwargs["position_ids"] = given + virtual
            return
        first = torch.arange(virtual, device=given.device).expand(len(given), -1)
        kwargs["position_ids"] = torch.cat([first, given + virtual], dim=1)


def _first_tokens(loaded: LoadedBase, tokens: int, text: str | None, seed: int) -> list[int]:
    if text is None:
        draw = random.Random(f"{seed}/prompt")  # noqa: S311 - where training begins, not a secret
        return [draw.randrange(loaded.model.get_input_embeddings().num_embeddings) for _ in range(tokens)]
    found: list[int] = loaded.tokenizer(text, add_special_tokens=False)["input_ids"]
    if not found:
        raise ConfigInvalid(["prompt tuning: the text to start from has no token"])
    return [found[index % len(found)] for index in range(tokens)]
