"""The admin API is what its section of the OpenAPI document says, held to it by schemathesis with an admin's key.

`EXAMPLES` requests for each operation that fit the document and, where it takes a body, `EXAMPLES` that do not.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from adapters.keyring import create_key
from router.admin_api.openapi import admin_section
from router.auth import Gatekeeper
from router.openapi import openapi_document
from tests.gateway_parts import Served, make_stock
from tests.test_schemathesis import CHECKS, require_openai_error

EXAMPLES = 4
DOCUMENT = openapi_document(admin_section())
CASES = [
    (path, method, mode)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
    for mode in GenerationMode
    if mode.is_positive or "requestBody" in operation
]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    stock = make_stock(tmp_path_factory.mktemp("stock"), versions=1)
    home = stock.copy(tmp_path_factory.mktemp("served") / "home")
    with Served(home, stock.base, Gatekeeper.for_bind("127.0.0.1", None), lora_folders=()) as running:
        yield running


@pytest.fixture(scope="module")
def secret(served: Served) -> str:
    registry = served.gateway.registry
    made = create_key(registry, "schemathesis", "admin")
    served.until(lambda: served.gateway.catalog.snapshot.serial >= registry.serial(), "the key")
    return made.secret


@pytest.mark.parametrize(("path", "method", "mode"), CASES)
def test_what_the_document_says_is_what_the_admin_api_does(
    path: str, method: str, mode: GenerationMode, served: Served, secret: str
) -> None:
    operation = schemathesis.openapi.from_dict(DOCUMENT)[path][method.upper()]

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def holds(case: Any) -> None:
        if isinstance(case.path_parameters, dict) and "route" in case.path_parameters:
            case.path_parameters["route"] = ("sql", "regex")[len(str(case.body)) % 2]  # else all would end at its name
        response = case.call(base_url=served.url, headers={"authorization": f"Bearer {secret}"}, timeout=60)
        case.validate_response(
            response, checks=[check for check in CHECKS if check.__name__ != "negative_data_rejection"]
        )
        require_openai_error(response)

    holds()
