"""Everything but inference as OpenAPI tells it: models, health, metrics, feedback, engines, and the document itself."""

from __future__ import annotations

from typing import get_args

from adapters.decisions import REQUEST_ID as REQUEST_ID_PATTERN

from ..types import EngineState
from .feedback import MAX_TEXT_CHARACTERS
from .openapi import (
    FAILURES,
    PATH,
    REFUSALS,
    REQUEST_ID,
    Document,
    Section,
    json_answer,
    json_body,
    operation,
    or_null,
    record,
    schema_ref,
)

_TEXT: Document = {"type": "string"}
_COUNT: Document = {"type": "integer", "minimum": 0}
_OPEN = {status: REFUSALS[status] for status in (403, 500)}  # no key is asked for
_NAME = {"name": "name", "in": "path", "required": True, "schema": {**_TEXT, "minLength": 1}}
_ID: Document = {"type": "string", "pattern": f"^{REQUEST_ID_PATTERN.pattern}$"}
_CARD = record(
    {"id": _TEXT, "object": {"const": "model"}, "created": _COUNT, "owned_by": _TEXT, "parent": _TEXT},
    optional=frozenset({"parent"}),
)
_SCHEMAS: Document = {
    "Models": record({"object": {"const": "list"}, "data": {"type": "array", "items": _CARD}}),
    "Ready": record(
        {
            "ready": {"type": "boolean"},
            "warming": {"type": "array", "items": _TEXT},
            "problems": record({"routes": {"type": "object"}, "classifier": or_null(_TEXT)}),
            "engines": {"type": "object", "additionalProperties": _COUNT},
            "registry_stale_seconds": {"type": "number", "minimum": 0},
        },
        optional=frozenset({"warming", "problems"}),  # where there are keys, for an operator's
    ),
    "Feedback": record(
        {
            "route": {"type": "string", "pattern": "^[a-z][a-z0-9-]{0,62}$", "description": "A route, or `base`."},
            "text": or_null({**_TEXT, "minLength": 1, "maxLength": MAX_TEXT_CHARACTERS}),
            "request_id": or_null(_ID),
            "user": or_null(_ID),
        },
        optional=frozenset({"text", "request_id", "user"}),
        additionalProperties=False,
        oneOf=[{"required": [one], "properties": {one: _TEXT}} for one in ("text", "request_id")],
    ),
    "Queued": record({"object": {"const": "feedback"}, "status": {"const": "queued"}}),
    "Engines": record(
        {
            "engines": {
                "type": "array",
                "items": record(
                    {
                        "name": _TEXT,
                        "state": {"enum": list(get_args(EngineState))},
                        "outstanding": _COUNT,
                        "resident": _COUNT,
                        "restarts": _COUNT,
                        "problem": or_null(_TEXT),
                        "base_fingerprint": or_null(_TEXT),
                    }
                ),
            }
        }
    ),
}


def _get(name: str, summary: str, schema: Document, *, open_to_all: bool = False) -> Document:
    more: Document = {"security": []} if open_to_all else {}
    answers = {"200": json_answer(summary, schema)}
    return {"get": operation(name, summary, answers, refuses=_OPEN if open_to_all else REFUSALS, **more)}


def _ready() -> Document:
    summary = "Whether the base can answer, and what is not as wanted."
    ready = schema_ref("Ready")
    answers = {"200": json_answer("Ready.", ready), "503": json_answer("Not yet, or no more.", ready)}
    return {"get": operation("ready", summary, answers, refuses=_OPEN, security=[])}


def _metrics() -> Document:
    page = {"description": "Prometheus text.", "headers": REQUEST_ID, "content": {"text/plain": {"schema": _TEXT}}}
    return {"get": operation("metrics", "Metrics, for an operator's key.", {"200": page})}


def _feedback() -> Document:
    answers = {"202": json_answer("It waits for an operator.", schema_ref("Queued"))}
    body = json_body(schema_ref("Feedback"), {"route": "sql", "text": "select all users"})
    summary = "Propose where a text belongs."
    return {"post": operation("feedback", summary, answers, refuses=FAILURES, requestBody=body)}


def _change_of_engine(name: str, summary: str) -> Document:
    answers = {"200": json_answer("The engines as they are now.", schema_ref("Engines"))}
    return {"post": operation(name, summary, answers, refuses=FAILURES, parameters=[_NAME])}


GATEWAY = Section(
    {
        "/v1/models": _get("models", "What this key may use.", schema_ref("Models")),
        "/health": _get("health", "This process answers.", record({"status": {"const": "ok"}}), open_to_all=True),
        "/ready": _ready(),
        "/metrics": _metrics(),
        "/v1/feedback": _feedback(),
        "/admin/v1/engines": _get("engines", "The engines, for an operator's key.", schema_ref("Engines")),
        "/admin/v1/engines/{name}/drain": _change_of_engine("drain_engine", "Give an engine no further calls."),
        "/admin/v1/engines/{name}/resume": _change_of_engine("resume_engine", "Give a drained engine calls again."),
        PATH: _get("openapi", "This document.", {"type": "object"}),
    },
    _SCHEMAS,
)
