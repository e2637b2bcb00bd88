"""The house keeps its shape: rooms, doors, and a README that names every file."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("adapters", "router", "trainer")
LISTED = (*ROOMS, "bench", "examples")


def python_files() -> list[Path]:
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.split()
    return [Path(name) for name in names]


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_without_side_effects_on_torch_or_the_web(room: str) -> None:
    heavy = "{'torch', 'transformers', 'fastapi', 'sklearn'}"
    program = f"import sys, {room}; sys.exit(len({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_every_file_has_its_line_in_the_readme_tree() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = [
        file for file in python_files() if file.parts[0] in LISTED and file.name not in {"__init__.py", "__main__.py"}
    ]
    if not files:
        pytest.skip("not a git checkout")
    missing = [str(file) for file in files if not re.search(rf"(?<![\w.]){re.escape(file.name)}\b", readme)]
    assert missing == []


def test_no_module_is_called_utils_helpers_manager_or_common() -> None:
    assert [file for file in python_files() if file.stem in {"utils", "helpers", "manager", "common"}] == []


def test_relative_imports_stay_inside_a_room() -> None:
    """`from ..adapters` would import a second copy of the package under another name."""
    across = re.compile(rf"^\s*from \.+({'|'.join(ROOMS)})\b", re.MULTILINE)
    assert [file for file in python_files() if across.search((ROOT / file).read_text(encoding="utf-8"))] == []
