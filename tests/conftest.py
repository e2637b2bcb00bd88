"""What holds for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres_server import PostgresServer, postgres_server

pytest.register_assert_rewrite("tests.backend_contract", "tests.vllm_engine")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests that want a database of their own on it."""
    with postgres_server() as server:
        yield server
