"""The inference endpoints as OpenAPI tells them: what routing reads of a body; the engine reads the rest."""

from __future__ import annotations

from typing import Any

from ..wire import REFUSED_FIELDS
from .openapi import FAILURES, REQUEST_ID, Document, Section, json_body, operation, or_null, record, schema_ref

_TEXT: Document = {"type": "string"}
_COUNT: Document = {"type": "integer", "minimum": 0}
_MODEL: Document = {
    "type": "string",
    "minLength": 1,
    "description": "`auto`, a route, a version (`sql@3`), an engine name, or the base's id.",
}
_STREAM = or_null({"type": "boolean"})
_HEADERS: Document = {
    "x-branchline-stage": {"schema": {"enum": ["live", "pinned", "base"]}},
    "x-branchline-reason": {"schema": _TEXT},
    "x-branchline-serial": {"schema": _COUNT},
    "x-branchline-overhead-ms": {"schema": {"type": "number", "minimum": 0}},
    "x-branchline-route": {"schema": _TEXT},
    "x-branchline-version": {"schema": {"type": "integer", "minimum": 1}},
    "x-branchline-confidence": {"schema": {"type": "number", "minimum": 0, "maximum": 1}},
}
_REFUSED: Document = {name: {"type": "null"} for name in REFUSED_FIELDS}


def _infer(name: str, summary: str, request: str, answer: str, *, example: Document, streams: bool = True) -> Document:
    content: Document = {"application/json": {"schema": schema_ref(answer)}}
    if streams:
        content["text/event-stream"] = {}
    headers = {**REQUEST_ID, **_HEADERS}
    said = {"200": {"description": "The engine's answer, as it came.", "headers": headers, "content": content}}
    body = json_body(schema_ref(request), {"model": "auto", **example})
    return {"post": operation(name, summary, said, refuses=FAILURES, requestBody=body)}


def _request(properties: Document, **more: Any) -> Document:
    optional = frozenset(properties) | {"stream"} | set(_REFUSED)
    required = frozenset(more.pop("needs", ()))
    fields = {"model": _MODEL, "stream": _STREAM, **_REFUSED, **properties}
    return record(fields, optional=optional - required, **more)


def _content(part: str) -> Document:
    text = record({"type": {"const": part}, "text": _TEXT})
    other = record({"type": {**_TEXT, "not": {"const": part}}})
    return {"anyOf": [_TEXT, {"type": "array", "items": {"anyOf": [text, other]}}]}


_USER = record({"role": {"const": "user"}, "content": _content("text")})
_OTHER = record({"role": {**_TEXT, "not": {"const": "user"}}})
_MESSAGES: Document = {"type": "array", "minItems": 1, "items": {"anyOf": [_USER, _OTHER]}}
_PROMPT: Document = {"anyOf": [_TEXT, {"type": "array", "minItems": 1}]}
_USAGE = record({"prompt_tokens": _COUNT, "completion_tokens": _COUNT, "total_tokens": _COUNT})


def _answer(kind: str, choice: Document) -> Document:
    choices = {"type": "array", "items": record({"index": _COUNT, "finish_reason": or_null(_TEXT), **choice})}
    return record(
        {"id": _TEXT, "object": {"const": kind}, "created": _COUNT, "model": _TEXT, "choices": choices, "usage": _USAGE}
    )


_SCHEMAS: Document = {
    "ChatRequest": _request({"messages": _MESSAGES, "echo": {"enum": [None, False]}}, needs=["messages"]),
    "CompletionRequest": _request({"prompt": _PROMPT}, needs=["prompt"]),
    "ResponseRequest": _request(
        {
            "input": {"anyOf": [_TEXT, {"type": "array", "minItems": 1, "items": {"type": "object"}}]},
            **{
                name: {"enum": [None, False]}
                for name in ("previous_response_id", "conversation", "background", "store")
            },
        },
        needs=["input"],
    ),
    "TokenizeRequest": _request(
        {"messages": _MESSAGES, "prompt": _PROMPT, "stream": {"enum": [None, False]}},
        anyOf=[{"required": ["messages"]}, {"required": ["prompt"]}],
    ),
    "ChatAnswer": _answer("chat.completion", {"message": record({"role": _TEXT, "content": or_null(_TEXT)})}),
    "CompletionAnswer": _answer("text_completion", {"text": _TEXT}),
    "Response": record({"id": _TEXT, "object": {"const": "response"}, "model": _TEXT}),
    "Tokens": record({"count": _COUNT, "max_model_len": _COUNT, "tokens": {"type": "array", "items": _COUNT}}),
}
_ASKED: Document = {"role": "user", "content": "Hello"}
INFERENCE = Section(
    {
        "/v1/chat/completions": _infer(
            "chat", "Answer a conversation.", "ChatRequest", "ChatAnswer", example={"messages": [_ASKED]}
        ),
        "/v1/completions": _infer(
            "complete", "Continue a prompt.", "CompletionRequest", "CompletionAnswer", example={"prompt": "Hello"}
        ),
        "/v1/responses": _infer(
            "respond", "OpenAI's responses, without state.", "ResponseRequest", "Response", example={"input": "Hello"}
        ),
        "/tokenize": _infer(
            "tokenize", "Count tokens.", "TokenizeRequest", "Tokens", example={"prompt": "Hello"}, streams=False
        ),
    },
    _SCHEMAS,
)
