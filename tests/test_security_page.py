"""The page on security: each row of defence names a test, and each test it names exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "security.md"


def test_every_test_the_page_names_exists() -> None:
    named = re.findall(r"`(tests/\w+\.py)::(test_\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 40
    assert [f"{file}::{name}" for file, name in named if name not in functions(ROOT / file)] == []


def test_every_row_of_defence_names_a_test() -> None:
    rows = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    shown = [line for line in rows if line.count("|") in (3, 4) and "::test_" in line]
    headed = sections_of_tests(PAGE.read_text(encoding="utf-8"))
    assert len(shown) == sum(headed)


def sections_of_tests(page: str) -> list[int]:
    """How many rows each table has whose last column is called `shown by`."""
    tables = re.findall(r"^\|.*shown by \|\n\|[-|]+\|\n((?:\|.*\n)+)", page, re.MULTILINE)
    return [table.count("\n") for table in tables]


def functions(file: Path) -> set[str]:
    if not file.is_file():
        return set()
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
