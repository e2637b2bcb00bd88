"""What vLLM says when it refuses or fails, in our own errors.

Four shapes are met on 0.32.0 and in what stands before it: OpenAI's `{"error": {"message", "type", "param", "code"}}`
with the HTTP status as code, the flat `{"object": "error", "message", …}` of older engines, FastAPI's `{"detail": …}`,
and anything at all from a proxy.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...errors import (
    AdapterUnavailable,
    EngineFailed,
    EngineOverloaded,
    EngineUnavailable,
    InvalidRequest,
    RouterError,
)

MAX_MESSAGE = 500
_MAX_SAID = 4096  # of a message that is looked at: the patterns below take time that grows with its square
_PATH = re.compile(r"(?<![\w/.:<])/(?:[\w.@+-]+/)+[\w.@+-]*")
_VALIDATION = re.compile(r"""'msg': (?P<quote>['"])(?P<message>.*?)(?P=quote)(?:, '|\})""", re.DOTALL)
_EXTRAS = re.compile(r" \((?:parameter|value)=.*\)$", re.DOTALL)
_LONG = re.compile(r"maximum (?:context|model) length|longer than the maximum model length", re.IGNORECASE)
_NO_FIELDS = {"input_text", "input_tokens"}  # vLLM's words for a prompt, whichever field it came in
_NOT_LOADED = "LoRA adapter '{}' was found but could not be loaded"


class UnknownName(AdapterUnavailable):
    """The engine has never heard of a version, or forgot it: it restarted, or cannot see the store."""


@dataclass(frozen=True, slots=True)
class Said:
    """An error object, whatever its shape. `message` may hold the client's own words: not for logs."""

    message: str = ""
    type: str | None = None
    param: str | None = None

    @classmethod
    def parse(cls, body: bytes) -> Said:
        """Never fails: of what is no error object, nothing is kept."""
        try:
            document = json.loads(body)
        except (ValueError, RecursionError):
            return cls()
        inner = document.get("error", document) if isinstance(document, dict) else None
        if isinstance(inner, str):
            return cls(inner)
        if not isinstance(inner, dict):
            return cls()
        message = inner.get("message", inner.get("detail", ""))
        return cls(message if isinstance(message, str) else "", _text(inner, "type"), _text(inner, "param"))


def error_from(status: int, body: bytes, *, engine_name: str, base_id: str) -> RouterError:
    """The error for an answer with `status` (HTTP) to a call for `engine_name`."""
    said = Said.parse(body)
    if status in (401, 403):
        return EngineFailed("the engine refuses Branchline's key", hint="set the key the engine was started with")
    if status == 429:
        return EngineOverloaded("the engine takes no further request now")
    if status == 503:
        return EngineUnavailable("the engine cannot take the request now")
    if status == 404:
        return _not_found(said, engine_name, base_id)
    # The whole sentence: other messages repeat what the client sent, and may not cost everybody the version.
    if engine_name != base_id and said.message.startswith(_NOT_LOADED.format(engine_name)):
        return AdapterUnavailable(f"the engine found {engine_name}, but could not load it")
    if 400 <= status < 500 or status == 501:
        return invalid_request(said)
    kind = said.type if said.type and said.type.isidentifier() and len(said.type) < 100 else "no reason given"
    return EngineFailed(f"the engine failed with {status} ({kind})")


def first_event_error(event: bytes, *, engine_name: str, base_id: str) -> RouterError:
    """The error that stands where a stream should begin; its code is the HTTP status it would have had."""
    data = event.partition(b"data: ")[2]
    try:
        status = int(json.loads(data)["error"]["code"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        status = 500
    status = status if 400 <= status < 600 else 500
    return error_from(status, data, engine_name=engine_name, base_id=base_id)


def invalid_request(said: Said) -> InvalidRequest:
    """The client's own fault, in words that fit any client: no paths, no values, a length limit."""
    code = "context_length_exceeded" if _LONG.search(said.message[:_MAX_SAID]) else None
    return InvalidRequest(clean(said.message) or "the engine refuses the request", param=_field(said.param), code=code)


def clean(message: str) -> str:
    """`message` without pydantic's dictionaries, values and disk paths, at most `MAX_MESSAGE` characters."""
    message = message[:_MAX_SAID]
    problems = dict.fromkeys(found["message"] for found in _VALIDATION.finditer(message))
    text = "; ".join(problems) if problems else _EXTRAS.sub("", message)
    text = _PATH.sub("<path>", " ".join(text.split()))
    return text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"


def _not_found(said: Said, engine_name: str, base_id: str) -> RouterError:
    if said.param == "model" or "does not exist" in said.message or "cannot be found" in said.message:
        if engine_name != base_id:
            return UnknownName(f"the engine does not know {engine_name}")
        return EngineFailed(f"the engine does not serve {base_id}")
    return InvalidRequest("this engine does not serve the endpoint", code="unsupported_endpoint")


def _field(location: str | None) -> str | None:
    """Pydantic's `body.messages.0.SomeParam.content` as clients know it: `messages[0].content`."""
    if location is None or location in _NO_FIELDS:
        return None
    field = ""
    for part in location.removeprefix("body.").split("."):
        if part.isdigit():
            field += f"[{part}]"
        elif part and not part[0].isupper():
            field += f".{part}" if field else part
    return field[:MAX_MESSAGE] or None


def _text(document: Mapping[str, object], key: str) -> str | None:
    value = document.get(key)
    return value if isinstance(value, str) else None
