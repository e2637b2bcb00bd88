"""What an installation into vLLM's environment changes: one plugin, which costs nothing where it is not used."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import entry_points

import pytest

from tests.vllm_engine import needs_vllm, vllm_python

IMPORT = """
import sys
from importlib.metadata import EntryPoint
register = EntryPoint("branchline", "adapters.engine.resolver:register", "vllm.general_plugins").load()
register()
print(sorted({"torch", "vllm", "sqlalchemy", "numpy", "fsspec", "click"} & set(sys.modules)))
"""
OURS = {"branchline", "sqlalchemy", "alembic", "mako", "markupsafe", "greenlet", "typing-extensions"}


def test_vllm_finds_the_plugin() -> None:
    (found,) = entry_points(group="vllm.general_plugins", name="branchline")
    assert found.value == "adapters.engine.resolver:register"


def test_the_plugin_is_light_and_inert_without_a_store() -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    ran = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True, env=environment, check=True)
    assert (ran.stdout, ran.stderr) == ("[]\n", "")


@needs_vllm
def test_installing_branchline_changes_nothing_of_vllms_environment() -> None:
    python = vllm_python()
    assert python is not None
    before = python.parents[1] / "before.txt"  # written by the Makefile before Branchline came
    if not before.exists():
        pytest.skip(f"no {before.name} beside that Python: the environment was not made by `make .venv-vllm/.ready`")
    ran = subprocess.run([python, "-m", "pip", "freeze"], capture_output=True, text=True, check=True)
    known, now = _requirements(before.read_text()), _requirements(ran.stdout)
    assert known <= now
    assert {_name(line) for line in now - known} <= OURS


def _requirements(freeze: str) -> set[str]:
    """One entry a distribution; what is installed from a checkout comes as a comment and `-e FOLDER`."""
    lines = {line.strip() for line in freeze.splitlines()}
    editable = {f"{found[1]}==editable" for found in map(_EDITABLE.match, lines) if found}
    return {line for line in lines if line and not line.startswith(("#", "-e "))} | editable


_EDITABLE = re.compile(r"# Editable .*\((.+)==")


def _name(requirement: str) -> str:
    return re.split(r"[=@ ]", requirement, maxsplit=1)[0].lower().replace("_", "-")
