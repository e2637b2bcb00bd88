"""The OpenAPI document, put together from sections: what each part of the HTTP surface takes, answers and refuses.

A part that serves paths of its own brings a `Section`; `create_app` passes them all to `openapi_document`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Document = dict[str, Any]
PATH = "/openapi.json"
REFUSALS = {  # what may be said before any handler is asked, or by none of them
    400: "The request cannot be read, or asks for what is not served.",
    401: "No key, or not one of this gateway.",
    403: "The key may not, or a page of another site asks.",
    429: "The key is at one of its limits.",
    500: "The gateway failed.",
}
FAILURES = {
    **REFUSALS,
    404: "There is no such model, route or engine.",
    409: "The route's state does not allow it.",
    413: "The body is too large.",
    502: "The engine failed.",
    503: "No engine or registry can take it now.",
}
REQUEST_ID = {"x-request-id": {"description": "Names this request in logs.", "schema": {"type": "string"}}}


@dataclass(frozen=True, slots=True)
class Section:
    """Paths as OpenAPI writes them, and the schemas that they refer to as `#/components/schemas/NAME`."""

    paths: Mapping[str, Document]
    schemas: Mapping[str, Document] = field(default_factory=dict)


def openapi_document(*sections: Section) -> Document:
    """The whole document. Raises `ValueError` where two sections bring the same path or schema."""
    paths: Document = {}
    schemas: Document = {"Error": _ERROR}
    for section in sections:
        if twice := [*(paths.keys() & section.paths.keys()), *(schemas.keys() & section.schemas.keys())]:
            raise ValueError(f"{', '.join(sorted(twice))} stands in two sections")
        paths |= section.paths
        schemas |= section.schemas
    return {
        "openapi": "3.1.0",
        "info": {"title": "Branchline", "version": "1", "description": _DESCRIPTION},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}],
    }


def operation(
    name: str, summary: str, answers: Mapping[str, Document], *, refuses: Mapping[int, str] = REFUSALS, **more: Any
) -> Document:
    """One operation: `answers` by status, and `refuses`, each of which is an OpenAI error."""
    refusals = {str(status): json_answer(why, schema_ref("Error")) for status, why in refuses.items()}
    return {"operationId": name, "summary": summary, "responses": {**refusals, **answers}, **more}


def json_answer(description: str, schema: Document, *, headers: Document | None = None) -> Document:
    """A JSON answer. Every answer carries a request id."""
    content = {"application/json": {"schema": schema}}
    return {"description": description, "headers": {**REQUEST_ID, **(headers or {})}, "content": content}


def json_body(schema: Document, example: Document) -> Document:
    return {"required": True, "content": {"application/json": {"schema": schema, "example": example}}}


def schema_ref(name: str) -> Document:
    return {"$ref": f"#/components/schemas/{name}"}


def record(properties: Document, *, optional: frozenset[str] = frozenset(), **more: Any) -> Document:
    """An object with `properties`, of which all but `optional` are there."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties, **more}


def or_null(schema: Document) -> Document:
    return {"anyOf": [schema, {"type": "null"}]}


_TEXT: Document = {"type": "string"}
_ERROR = record(
    {
        "error": record(
            {"message": _TEXT, "type": _TEXT, "param": or_null(_TEXT), "code": or_null(_TEXT)},
            additionalProperties=False,
        )
    },
    additionalProperties=False,
)
_DESCRIPTION = (
    "An OpenAI-compatible gateway that routes each request to an adapter or to the base. Every error is an OpenAI "
    "error with a request id, also what no handler is asked about: 404 and 405 for what is not served, 408 for "
    "what comes too slowly, 431 for a head that is too large, 400 and 501 for what is no plain HTTP/1.1."
)
