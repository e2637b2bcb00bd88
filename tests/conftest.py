"""What holds for all tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.postgres_server import PostgresServer, postgres_server

pytest.register_assert_rewrite("tests.backend_contract", "tests.vllm_engine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Several processes share the tests by file (`-n`); real vLLM engines, which want all cores, run one after another.

    They come first: what takes longest must not begin last.
    """
    from tests.vllm_engine import needs_vllm  # not before its asserts are registered

    for item in items:
        file = item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group("vllm" if needs_vllm.mark in item.iter_markers() else file))
    items.sort(key=lambda item: needs_vllm.mark not in item.iter_markers())


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests that want a database of their own on it."""
    with postgres_server() as server:
        yield server
