"""The OpenAPI document of the admin API is true: schemathesis makes requests from it, and answers are what it says.

`EXAMPLES` requests for each operation that fit the document and as many that do not, with an admin's key, over a real
socket to a gateway with the echo engine.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from fastapi.routing import APIRoute
from hypothesis import given
from schemathesis import GenerationMode

from router.admin_api.openapi import admin_section
from router.admin_api.operation import Operation
from router.admin_api.table import OPERATIONS, path_of
from router.auth import Gatekeeper
from router.http.inference import ENDPOINTS
from router.http.openapi import openapi_document
from router.http.openapi_gateway import GATEWAY
from router.http.openapi_inference import INFERENCE
from tests.admin_client import OWN_KEY, Person, person
from tests.gateway_parts import Served, make_stock
from tests.test_schemathesis import CHECKS, generated, require_openai_error

EXAMPLES = 2
DOCUMENT = openapi_document(GATEWAY, INFERENCE, admin_section())
OURS = admin_section().paths
CASES = [
    (path, method, mode)
    for path, methods in OURS.items()
    for method, operation in methods.items()
    for mode in GenerationMode
    if mode.is_positive or "requestBody" in operation or "parameters" in operation
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    stock = make_stock(tmp_path_factory.mktemp("stock"), versions=1)
    home = stock.copy(tmp_path_factory.mktemp("served") / "home")
    gatekeeper = Gatekeeper.for_bind("127.0.0.1", OWN_KEY)
    with Served(home, stock.base, gatekeeper, live=[("sql", 1)], lora_folders=()) as running:
        yield running


@pytest.fixture(scope="module")
def admin(served: Served) -> Iterator[Person]:
    with person(served, "admin", name="admin") as somebody:
        yield somebody


def test_every_path_that_is_served_stands_in_the_document_that_is_served(served: Served, admin: Person) -> None:
    paths = {route.path for route in served.app.routes if isinstance(route, APIRoute)}
    assert {path.replace("{name:path}", "{name}") for path in paths} | set(ENDPOINTS) == set(DOCUMENT["paths"])
    assert admin.done("GET", "/openapi.json") == DOCUMENT


@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_what_the_document_says_is_what_the_gateway_does(
    path: str, method: str, mode: GenerationMode, served: Served, admin: Person
) -> None:
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method.upper()]

    @generated(EXAMPLES)
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        if "name" in case.path_parameters and case.path_parameters["name"] == "admin":
            return  # it is the key that asks
        if mode.is_positive and "route" in case.path_parameters:
            case.path_parameters["route"] = ("sql", "regex")[len(str(case.body)) % 2]
        response = case.call(base_url=served.url, headers=dict(admin.client.headers), timeout=60)
        case.validate_response(response, checks=CHECKS)
        require_openai_error(response)

    holds()


@pytest.mark.parametrize("operation", [one for one in OPERATIONS if one.body is not None], ids=lambda one: one.name)
def test_the_example_of_a_body_is_one(operation: Operation) -> None:
    body = OURS[path_of(operation)][operation.method.lower()]["requestBody"]["content"]["application/json"]
    assert operation.body is not None
    operation.body.model_validate(body["example"])
