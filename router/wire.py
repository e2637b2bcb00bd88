"""The OpenAI request, parsed once and strictly: what routing needs is checked, the rest goes on as it came."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from .errors import InvalidRequest
from .turns import user_texts
from .types import Endpoint

MAX_DEPTH = 64
_ESCAPED_COLON = b"\\u003"  # or another of sixteen characters
_ROUNDED = 2.0**63  # orjson reads a longer integer as a float
# Fields that can hurt other users' requests in an engine (DESIGN: the life of a request).
REFUSED_FIELDS = (
    "prompt_logprobs",
    "kv_transfer_params",
    "ec_transfer_params",  # as above, for the encoder's cache
    "priority",
    "vllm_xargs",
    "request_id",
    "mm_processor_kwargs",
    "media_io_kwargs",
    "prompt_embeds",  # serialised tensors that the engine unpacks in its own process
    "logprob_token_ids",  # takes the place of everybody's top log-probabilities in the same batch
    "prompt_logprob_token_ids",
    "chat_template",  # a program, run on the engine's event loop
)
_STATEFUL_FIELDS = ("previous_response_id", "conversation", "background", "store")


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
    _refuse_fields(body, endpoint)
    if stream and endpoint == "tokenize":
        raise InvalidRequest("'stream' is not served for /tokenize", param="stream", code="unsupported_parameter")
    texts = user_texts(body, endpoint)
    if endpoint == "responses":
        _refuse_state(body)
        body = {**body, "store": False}  # absent means true, and an engine may keep what it stores for ever
    return ClientRequest(endpoint, model, bool(stream), texts, body)


def parse_object(raw: bytes) -> dict[str, object]:
    """A JSON object from bytes, or `InvalidRequest`."""
    value = _read_plainly(raw)
    return _read_strictly(raw) if value is None else value


def _read_plainly(raw: bytes) -> dict[str, object] | None:
    """An object whose members are all distinct and whose numbers are exact; `None` where a closer look is needed.

    orjson keeps the last of two members of one name. Every member takes a colon, and of a text's colons each is a
    byte of `raw` unless it was escaped: so all members are there if the colons of what was read are those of `raw`.
    """
    if _ESCAPED_COLON in raw:
        return None
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and _colons(value) == raw.count(b":") else None


def _colons(document: dict[str, object]) -> int | None:
    """How many colons `document` takes; `None` for one nested over `MAX_DEPTH`, or with numbers that may be rounded."""
    colons, level = 0, [document]
    for _ in range(MAX_DEPTH):
        deeper: list[Any] = []
        for one in level:
            members: Iterable[object] = one
            if isinstance(one, dict):
                colons += len(one) + sum([name.count(":") for name in one])
                members = one.values()
            for member in members:
                if isinstance(member, str):
                    colons += member.count(":") if ":" in member else 0  # to look is faster than to count
                elif isinstance(member, (dict, list)):
                    deeper.append(member)
                elif isinstance(member, float) and not -_ROUNDED < member < _ROUNDED:
                    return None
        if not deeper:
            return colons
        level = deeper
    return None


def _read_strictly(raw: bytes) -> dict[str, object]:
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


def _refuse_fields(body: Mapping[str, object], endpoint: Endpoint) -> None:
    for field in REFUSED_FIELDS:
        if body.get(field) is not None:
            raise InvalidRequest(
                f"{field!r} is not allowed: it can affect other requests", param=field, code="unsupported_parameter"
            )
    # Both ask the engine for log-probabilities of the prompt; of a chat it needs no `logprobs` for that.
    if body.get("echo") and (endpoint == "chat/completions" or body.get("logprobs") is not None):
        beside = "" if endpoint == "chat/completions" else " together with 'logprobs'"
        raise InvalidRequest(
            f"'echo'{beside} is not allowed: it can affect other requests", param="echo", code="unsupported_parameter"
        )


def _refuse_state(body: Mapping[str, object]) -> None:
    for field in _STATEFUL_FIELDS:
        if body.get(field) not in (None, False):
            raise InvalidRequest(
                f"{field!r} is not supported: Branchline keeps no state between requests: "
                "send the whole conversation as `input`",
                param=field,
                code="unsupported_parameter",
            )
