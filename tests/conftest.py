"""What holds for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.postgres_server import PostgresServer, postgres_server

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
# Exactness is promised for a CPU. What runs on a GPU does so in processes of its own: tests/test_trainer_gpu.py.
os.environ["CUDA_VISIBLE_DEVICES"] = ""

pytest.register_assert_rewrite("tests.backend_contract", "tests.vllm_engine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Real engines come first: what takes longest must not begin last."""
    items.sort(key=lambda item: _share(item.nodeid) != "vllm")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Processes share the tests by file; real vLLM engines, which want all cores, run one after another.

    Written here, because `--dist loadgroup` of pytest-xdist 3.8 does nothing with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]  # ships no types
        def _split_scope(self, nodeid: str) -> str:
            return _share(nodeid)

    return ByFile(config, log)


def _share(nodeid: str) -> str:
    """What is run in one process: the tests of a file, or all that start a real vLLM."""
    file = nodeid.partition("::")[0]
    return "vllm" if _starts_vllm(file) else file


@cache
def _starts_vllm(file: str) -> bool:
    return "needs_vllm" in (ROOT / file).read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresServer]:
    """One PostgreSQL for all tests that want a database of their own on it."""
    with postgres_server() as server:
        yield server
