"""The OpenAPI document is true: schemathesis makes requests from it, and answers are what it says.

`EXAMPLES` requests for each operation that fit the document and, where it takes a body, `EXAMPLES` that do not, over
a real socket to a gateway with the echo engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from router.auth import Gatekeeper
from router.http.inference import ENDPOINTS
from router.http.openapi import openapi_document
from router.http.openapi_gateway import GATEWAY
from router.http.openapi_inference import INFERENCE
from tests.gateway_parts import Served, make_stock

KEY = "k-0123456789abcdef"
EXAMPLES = 10
DOCUMENT = openapi_document(GATEWAY, INFERENCE)
CASES = [
    (path, method, mode)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    for mode in GenerationMode
    if mode.is_positive or "requestBody" in operation  # else there is nothing to be wrong
]
EXAMPLES_GIVEN: list[tuple[str, dict[str, object]]] = [
    *[(path, {}) for path, methods in DOCUMENT["paths"].items() if "requestBody" in methods.get("post", {})],
    ("/v1/chat/completions", {"stream": True}),
    ("/v1/completions", {"stream": True}),
]
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    negative_data_rejection,
]


def generated(examples: int) -> settings:
    """So many requests of each operation, made anew each time."""
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    stock = make_stock(tmp_path_factory.mktemp("stock"), versions=1)
    home = stock.copy(tmp_path_factory.mktemp("served") / "home")
    with Served(home, stock.base, Gatekeeper.for_bind("127.0.0.1", KEY), live=[("sql", 1)]) as running:
        yield running


def test_the_document_is_served_behind_the_key(served: Served) -> None:
    url = f"{served.url}/openapi.json"
    assert httpx.get(url).status_code == 401
    assert httpx.get(url, headers={"authorization": f"Bearer {KEY}"}).json() == DOCUMENT


def test_every_path_that_is_served_stands_in_the_document(served: Served) -> None:
    paths = {route.path for route in served.app.routes if isinstance(route, APIRoute)}
    assert {path.replace("{name:path}", "{name}") for path in paths} | set(ENDPOINTS) == set(DOCUMENT["paths"])


@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_what_the_document_says_is_what_the_gateway_does(
    path: str, method: str, mode: GenerationMode, served: Served
) -> None:
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    operation = schema[path][method.upper()]

    @generated(EXAMPLES)
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        _suit(case, served)
        response = case.call(base_url=served.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
        case.validate_response(response, checks=CHECKS)
        require_openai_error(response)

    holds()


@pytest.mark.parametrize(("path", "more"), EXAMPLES_GIVEN)
def test_the_documents_own_examples_are_taken(path: str, more: dict[str, object], served: Served) -> None:
    example: Any = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]["example"]
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path]["POST"]
    case: Any = operation.Case(body=example | more, media_type="application/json")
    response = case.call(base_url=served.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60)
    case.validate_response(response, checks=CHECKS[:-1])
    if path == "/v1/responses":  # the echo engine does not serve it
        assert response.json()["error"]["code"] == "unsupported_endpoint"
    else:
        assert response.status_code in (200, 202)


def _suit(case: Any, served: Served) -> None:
    """Most of what asks for any model asks for one that there is: the rest would end at its name."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        models = ("auto", served.gateway.catalog.snapshot.base_id, "sql", case.body["model"] or "auto")
        case.body["model"] = models[len(str(case.body)) % 4]


def require_openai_error(response: Any) -> None:
    assert response.headers["x-request-id"]
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
