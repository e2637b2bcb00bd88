"""The prompt in a request body, for engines that decode in this process."""

from __future__ import annotations

from collections.abc import Mapping

from adapters.rows import Message

from ..errors import InvalidRequest

MAX_PROMPTS = 64
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_TOKENIZE_NEUTRAL: dict[str, object] = {
    "stream": False,
    "add_generation_prompt": True,
    "continue_final_message": False,
    "return_token_strs": False,
}

TextOrIds = str | tuple[int, ...]


def parse_messages(body: Mapping[str, object]) -> tuple[Message, ...]:
    """The conversation of a chat request; raises `InvalidRequest` naming the field at fault.

    `developer` counts as `system`; text parts are lines, as vLLM joins them.
    """
    turns = body.get("messages")
    if not isinstance(turns, list) or not turns:
        raise InvalidRequest("messages must be a non-empty list", param="messages")
    return tuple(_message(turn, f"messages[{index}]") for index, turn in enumerate(turns))


def parse_prompts(body: Mapping[str, object]) -> tuple[TextOrIds, ...]:
    """The prompts of a completions request, one per choice: texts or token ids."""
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        return (_text(prompt, "prompt"),)
    if not isinstance(prompt, list) or not prompt:
        raise InvalidRequest("prompt must be a string, a list of strings, token ids or a list of those", param="prompt")
    if all(_is_id(item) for item in prompt):
        return (tuple(prompt),)
    if len(prompt) > MAX_PROMPTS:
        raise InvalidRequest(f"prompt holds {len(prompt)} prompts, at most {MAX_PROMPTS} are served", param="prompt")
    return tuple(_prompt(item, f"prompt[{index}]") for index, item in enumerate(prompt))


def parse_tokenize(body: Mapping[str, object]) -> str | tuple[Message, ...]:
    """What a /tokenize request asks for: a text, or a conversation up to where the answer begins."""
    by_text = "prompt" in body
    neutral = {**_TOKENIZE_NEUTRAL, "add_special_tokens": by_text}
    for name, value in body.items():
        if name in ("model", "prompt" if by_text else "messages") or value is None:
            continue
        if name not in neutral or value is not neutral[name]:
            raise InvalidRequest(
                f"{name} is not supported by this engine as {value!r:.40}", param=name, code="unsupported_parameter"
            )
    if not by_text:
        return parse_messages(body)
    prompt = body["prompt"]
    if not isinstance(prompt, str):
        raise InvalidRequest("prompt must be a string", param="prompt")
    return _text(prompt, "prompt")


def _prompt(item: object, where: str) -> TextOrIds:
    if isinstance(item, str):
        return _text(item, where)
    if isinstance(item, list) and item and all(_is_id(token) for token in item):
        return tuple(item)
    raise InvalidRequest(f"{where} must be a string or a non-empty list of token ids", param="prompt")


def _is_id(item: object) -> bool:
    return isinstance(item, int) and not isinstance(item, bool) and item >= 0


def _message(turn: object, where: str) -> Message:
    if not isinstance(turn, dict):
        raise InvalidRequest(f"{where} must be an object", param=where)
    role = turn.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(
            f"{where}.role must be one of {', '.join(_ROLES)}; found {role!r:.40}", param=f"{where}.role"
        )
    for key, value in turn.items():
        if key not in {"role", "content"} and value not in (None, [], {}):
            raise InvalidRequest(
                f"{where}.{key} is not supported by this engine", param=f"{where}.{key}", code="unsupported_parameter"
            )
    return Message(_ROLES[role], _content(turn.get("content"), f"{where}.content"))


def _content(content: object, where: str) -> str:
    if isinstance(content, str):
        return _text(content, where)
    if not isinstance(content, list) or not content:
        raise InvalidRequest(f"{where} must be a string or a list of text parts", param=where)
    return "\n".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))


def _part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) and kind == "text" else None
    if not isinstance(text, str):
        raise InvalidRequest(f"{where} must be a text part; this engine reads text only", param=where)
    return _text(text, where)


def _text(text: str, where: str) -> str:
    """`text` itself; a lone surrogate (legal in JSON) has no bytes, so no tokenizer can read it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(f"{where} holds a lone surrogate, which is not valid Unicode", param=where) from None
    return text
