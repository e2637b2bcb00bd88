"""Messages to token ids: the one place where the engine renders a conversation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adapters.rows import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_token_ids(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of `messages` in the base's own chat template, up to where the assistant's answer begins.

    Raises `ValueError` where the base has no template, `jinja2.TemplateError` where its template refuses.
    """
    turns = [{"role": message.role, "content": message.content} for message in messages]
    ids: Any = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=True, return_dict=False)
    return [int(token) for token in ids]
