"""The user texts of a request, newest first: what the classifier may read, endpoint by endpoint."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import InvalidRequest
from .types import Endpoint

USER_TURNS = 4  # the last one and, where the classifier abstains, at most three before it


def user_texts(body: Mapping[str, object], endpoint: Endpoint) -> tuple[str, ...]:
    """At most `USER_TURNS` texts; empty: nothing to read. Raises `InvalidRequest` naming the field at fault."""
    if endpoint == "responses":
        return _input_texts(body.get("input"))
    if endpoint == "chat/completions" or (endpoint == "tokenize" and "prompt" not in body):
        return _message_texts(body.get("messages"))
    return _prompt_texts(body.get("prompt"))


def _message_texts(messages: object) -> tuple[str, ...]:
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a non-empty list", param="messages")
    texts: list[str] = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(f"messages[{place}] must be an object with a 'role'", param=f"messages[{place}]")
        if message["role"] == "user":
            texts.append(_content_text(message.get("content"), f"messages[{place}].content", "text"))
    return _newest(texts)


def _input_texts(given: object) -> tuple[str, ...]:
    """Of /v1/responses: a string, or items of which messages have a role; tool calls and their outputs have none."""
    if isinstance(given, str):
        return (given,) if given.strip() else ()
    if not isinstance(given, list) or not given:
        raise InvalidRequest("'input' must be a string or a non-empty list of items", param="input")
    texts: list[str] = []
    for place, item in enumerate(given):
        where = f"input[{place}]"
        if not isinstance(item, dict):
            raise InvalidRequest(f"{where} must be an object", param=where)
        if item.get("type") == "item_reference":
            raise InvalidRequest(
                f"{where} refers to a stored item: Branchline keeps no state between requests, send the item itself",
                param=where,
                code="unsupported_parameter",
            )
        if item.get("role") == "user" and item.get("type") in (None, "message"):
            texts.append(_content_text(item.get("content"), f"{where}.content", "input_text"))
    return _newest(texts)


def _prompt_texts(prompt: object) -> tuple[str, ...]:
    """A string is classified, of several the first; token ids are not text."""
    if isinstance(prompt, list) and prompt:
        prompt = prompt[0]
    elif not isinstance(prompt, str):
        raise InvalidRequest("'prompt' must be a string, a list of strings or token ids", param="prompt")
    return (prompt,) if isinstance(prompt, str) and prompt.strip() else ()


def _newest(texts: list[str]) -> tuple[str, ...]:
    return tuple(text for text in texts[: -USER_TURNS - 1 : -1] if text.strip())


def _content_text(content: object, where: str, text_type: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param=where)
    parts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidRequest(f"{where} parts must be objects with a 'type'", param=where)
        if part["type"] == text_type and isinstance(part.get("text"), str):
            parts.append(part["text"])
    return "\n".join(parts)
