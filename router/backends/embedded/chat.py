"""Requests to token ids. `prompt_token_ids` is the one place where the engine renders a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from adapters.rows import Message

from ...errors import InvalidRequest
from ...types import Call
from ..prompt import TextOrIds, parse_messages, parse_prompts, parse_tokenize

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_token_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of `messages` in the base's own chat template, up to where the assistant's answer begins.

    Raises `ValueError` where the base has no template, `jinja2.TemplateError` where its template refuses.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    ids: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return [int(token) for token in ids]


def call_token_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int, call: Call) -> list[tuple[int, ...]]:
    """The prompt of every choice of `call`; ids run from 0 to `vocabulary` - 1. Raises `InvalidRequest`."""
    if call.endpoint == "completions":
        return [_completion_ids(tokenizer, vocabulary, prompt) for prompt in parse_prompts(call.body)]
    messages = parse_tokenize(call.body) if call.endpoint == "tokenize" else parse_messages(call.body)
    if isinstance(messages, str):
        return [tuple(tokenizer(messages)["input_ids"])]
    if not tokenizer.chat_template:
        raise InvalidRequest("this base has no chat template; use /v1/completions", param="messages")
    try:
        return [tuple(prompt_token_ids(tokenizer, messages))]
    except TemplateError as error:
        raise InvalidRequest(f"the base's chat template refuses these messages: {error}", param="messages") from error


def probe_token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """`text` as a user turn, or plain where the base has no chat template."""
    if tokenizer.chat_template:
        return tuple(prompt_token_ids(tokenizer, [Message("user", text)]))
    return tuple(tokenizer(text)["input_ids"])


def _completion_ids(tokenizer: PreTrainedTokenizerBase, vocabulary: int, prompt: TextOrIds) -> tuple[int, ...]:
    ids = tuple(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else prompt
    if not ids:
        raise InvalidRequest("prompt holds no tokens", param="prompt")
    if max(ids) >= vocabulary:
        raise InvalidRequest(f"prompt holds token id {max(ids)}, the vocabulary has {vocabulary}", param="prompt")
    return ids
