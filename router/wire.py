"""The OpenAI request, parsed once and strictly: what routing needs is checked, the rest goes on as it came."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from .errors import InvalidRequest
from .types import Endpoint

MAX_DEPTH = 64
USER_TURNS = 4  # the last one and, where the classifier abstains, at most three before it
# Fields that can hurt other users' requests in an engine (DESIGN: the life of a request).
REFUSED_FIELDS = (
    "prompt_logprobs",
    "kv_transfer_params",
    "priority",
    "vllm_xargs",
    "request_id",
    "mm_processor_kwargs",
    "media_io_kwargs",
)


@dataclass(frozen=True, slots=True)
class ClientRequest:
    """A request as routing sees it. `texts` are the user turns to classify, newest first; empty: nothing to read."""

    endpoint: Endpoint
    model: str
    stream: bool
    texts: tuple[str, ...]
    body: Mapping[str, object]


def parse_request(raw: bytes, endpoint: Endpoint) -> ClientRequest:
    """Parse a body; raises `InvalidRequest`. Duplicate keys, NaN and trailing bytes are refused, because another
    parser could read another `model` from them.
    """
    body = parse_object(raw)
    model = body.get("model")
    if not isinstance(model, str) or not model:
        raise InvalidRequest(
            "'model' must be a non-empty string: 'auto', a route, a version or the base", param="model"
        )
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise InvalidRequest("'stream' must be true or false", param="stream")
    _refuse_fields(body)
    texts = _chat_texts(body) if endpoint == "chat/completions" else _completion_texts(body)
    return ClientRequest(endpoint, model, bool(stream), texts, body)


def parse_object(raw: bytes) -> dict[str, object]:
    """A JSON object from bytes, or `InvalidRequest`."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_distinct, parse_constant=_no_constant, parse_float=_finite
        )
        if b"\\u" in raw:  # an escape may name half a character, which no engine can be sent
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (UnicodeDecodeError, UnicodeEncodeError) as error:
        raise InvalidRequest("the body is not UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error!s:.120}") from error
    if not isinstance(value, dict):
        raise InvalidRequest(f"the body must be a JSON object, found {type(value).__name__}")
    if _depth_over(value, MAX_DEPTH):
        raise InvalidRequest(f"the body is nested more than {MAX_DEPTH} deep")
    return value


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object names a key twice")
    return value


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):  # would be sent on as Infinity, which is not JSON
        raise ValueError(f"the number {text:.40} is out of range")
    return number


def _depth_over(value: object, limit: int) -> bool:
    level = [value]
    for _ in range(limit + 1):
        if not level:
            return False
        level = [
            inner
            for one in level
            if isinstance(one, (dict, list))
            for inner in (one.values() if isinstance(one, dict) else one)
            if isinstance(inner, (dict, list))
        ]
    return bool(level)


def _refuse_fields(body: Mapping[str, object]) -> None:
    for field in REFUSED_FIELDS:
        if body.get(field) is not None:
            raise InvalidRequest(
                f"{field!r} is not allowed: it can affect other requests", param=field, code="unsupported_parameter"
            )
    if body.get("echo") and body.get("logprobs") is not None:
        raise InvalidRequest(
            "'echo' together with 'logprobs' is not allowed: it can affect other requests",
            param="echo",
            code="unsupported_parameter",
        )


def _chat_texts(body: Mapping[str, object]) -> tuple[str, ...]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise InvalidRequest("'messages' must be a non-empty list", param="messages")
    texts: list[str] = []
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise InvalidRequest(f"messages[{place}] must be an object with a 'role'", param=f"messages[{place}]")
        if message["role"] == "user":
            texts.append(_content_text(message.get("content"), place))
    return tuple(text for text in texts[: -USER_TURNS - 1 : -1] if text.strip())


def _content_text(content: object, place: int) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(
            f"messages[{place}].content must be a string or a list of parts", param=f"messages[{place}].content"
        )
    parts: list[str] = []
    for part in content:
        if not isinstance(part, dict) or not isinstance(part.get("type"), str):
            raise InvalidRequest(
                f"messages[{place}].content parts must be objects with a 'type'", param=f"messages[{place}].content"
            )
        if part["type"] == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
    return "\n".join(parts)


def _completion_texts(body: Mapping[str, object]) -> tuple[str, ...]:
    """A string is classified, of several the first; token ids are not text."""
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt:
        prompt = prompt[0]
    elif not isinstance(prompt, str):
        raise InvalidRequest("'prompt' must be a string, a list of strings or token ids", param="prompt")
    return (prompt,) if isinstance(prompt, str) and prompt.strip() else ()
