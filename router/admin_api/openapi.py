"""The admin API as OpenAPI tells it: made from the table and from what its bodies are."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from ..http.openapi import FAILURES, REQUEST_ID, Document, Section, json_answer, json_body, operation
from .operation import Operation
from .reading import FORCE_HEADER
from .table import OPERATIONS, path_of

_REFUSES = {
    **FAILURES,
    412: "The route is at another revision than `If-Match` says; the answer's ETag is the one it has.",
    422: "The Idempotency-Key stood for another request.",
}
_TEXT: Document = {"type": "string"}
_NAME: Document = {"type": "string", "minLength": 1}
_PATH: Document = {"route": _NAME, "name": _NAME, "number": {"type": "integer", "minimum": 1, "maximum": 999_999_999}}
_ETAG: Document = {"etag": {"description": "The route's revision.", "schema": _TEXT}}
_REF = "#/components/schemas/{model}"
_EXAMPLES: Document = {
    "NewRoute": {"name": "sql", "description": "SQL from questions", "examples": ["how many users are there?"]},
    "RouteChange": {"policy": {"min_items": 100}},
    "Promotion": {"version": 3},
    "Publication": {"folder": "sql"},
    "NewExamples": {"texts": ["sum the sales of May"]},
    "OldExamples": {"texts": ["sum the sales of May"]},
    "Correction": {"route": "sql", "texts": ["which user spent most?"], "why": "a ticket"},
    "Chosen": {"ids": [1, 2]},
    "Removed": {"digests": ["0a1b2c3d"]},
    "NewKey": {"name": "shop", "role": "inference", "routes": ["sql"], "limits": {"requests_per_minute": 600}},
    "KeyChange": {"limits": {"max_concurrent": 16}},
    "Load": {"lora_name": "sql", "lora_path": "/models/sql"},
    "Unload": {"lora_name": "sql"},
}


def admin_section() -> Section:
    """Every operation of the table, with its body and its query as their models are."""
    models = sorted({one.body for one in OPERATIONS if one.body is not None}, key=lambda model: model.__name__)
    _, definitions = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
    paths: Document = {}
    for one in OPERATIONS:
        paths.setdefault(path_of(one), {})[one.method.lower()] = _operation(one)
    return Section(paths, definitions["$defs"])


def _operation(one: Operation) -> Document:
    answers = {str(status): _answer(one, status) for status in one.status}
    more: dict[str, Any] = {"parameters": _parameters(one)} if _parameters(one) else {}
    if one.body is not None:
        needed = any(field.is_required() for field in one.body.model_fields.values())
        body = json_body({"$ref": _REF.format(model=one.body.__name__)}, _EXAMPLES.get(one.body.__name__, {}))
        more["requestBody"] = {**body, "required": needed}
    summary = f"{one.summary} For keys of the role `{one.role}`."
    return operation(one.name, summary, answers, refuses=_REFUSES, **more)


def _answer(one: Operation, status: int) -> Document:
    what = HTTPStatus(status).phrase
    if one.answers.get("type") == "string":
        content = {"text/plain": {"schema": _TEXT}}
        return {"description": what, "headers": REQUEST_ID, "content": content}
    return json_answer(what, dict(one.answers), headers=_ETAG if one.of_route else None)


def _parameters(one: Operation) -> list[Document]:
    names = re.findall(r"{(\w+)}", one.path)
    found = [{"name": name, "in": "path", "required": True, "schema": _PATH[name]} for name in names]
    found += _query(one.query)
    if one.conditional:
        found.append(_header("If-Match", "The ETag of the route as it was decided on."))
    if one.writes:
        found.append(_header("Idempotency-Key", "Names this request: it is done once, however often it is sent."))
    if one.answers.get("type") == "string":
        found.append(_header(FORCE_HEADER, "Why the promotion gate is overruled."))
    return found


def _query(model: type[BaseModel]) -> list[Document]:
    properties = model.model_json_schema()["properties"] if model.model_fields else {}
    return [{"name": name, "in": "query", "schema": schema} for name, schema in properties.items()]


def _header(name: str, description: str) -> Document:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}
