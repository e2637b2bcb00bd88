"""Every command of docs/admin.md, run in order as it stands there, against a real gateway."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from shutil import copytree

import pytest

from adapters.manifests import weights_digest
from tests.adapter_folders import make_evidence
from tests.gateway_parts import make_stock
from tests.gateway_process import GatewayProcess, environment

PAGE = Path(__file__).parents[1] / "docs" / "admin.md"


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the commands are given: the base `tiny`, and two adapters, of which one has evidence."""
    stock = make_stock(tmp_path / "stock", versions=2, routes=[])
    copytree(stock.base.folder, tmp_path / "tiny")
    for name, source in zip(("sql", "ticket"), stock.folders, strict=True):
        copytree(source, tmp_path / "adapters" / name)
    evidence = make_evidence(weights_digest(stock.folders[0]), stock.base.fingerprint)
    (tmp_path / "adapters" / "sql" / "evidence.json").write_text(evidence.to_json())
    return tmp_path


def test_the_commands_of_the_page_do_what_it_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    variables = environment(HOME=str(folder))
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    said: list[str] = []
    gateway: GatewayProcess | None = None
    apart = ""
    try:
        for line in commands():
            if line.startswith("branchline serve"):
                words = line.replace("8001", "0").split()[2:]
                gateway = GatewayProcess.start(folder / ".branchline", *words, "--port", "0", **variables)
                gateway.wait_until_serving()
                apart = gateway.wait_for(r"answered on (http://\S+)/admin/v1").group(1)
                continue
            shown, line = line, line.replace("http://127.0.0.1:8001", apart)
            name, _, line = line.partition("=") if line.startswith("export ") else ("", "", line)
            done = subprocess.run(
                ["bash", "-c", f"echo -n {line}" if name else line],
                env=variables,
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            assert done.returncode == 0, f"{shown}\n{done.stdout}\n{done.stderr}"
            if name:
                variables[name.removeprefix("export ")] = done.stdout.strip()
            said.append(done.stdout)
    finally:
        if gateway is not None:
            gateway.stop()
    text = "\n".join(said)
    for expected in (
        '"in_force":{"gateways":["',
        '"unmet":[]',
        '"why":"incident 42"',
        '"min_items":100',
        '"actor":"key:pipeline"',
        '"secret":"bl-',
        "Success: LoRA adapter 'ticket' added successfully.",
        "Success: LoRA adapter 'ticket' removed successfully.",
        "Success: LoRA adapter 'sql' added successfully.",
    ):
        assert expected in text, text
    disabled = [one for one in said if '"kind":"disabled"' in one and "incident" not in one and '"events"' not in one]
    assert len(disabled) == 2
    assert disabled[0] == disabled[1]
