"""Every command of docs/registry.md, run in order as it stands there, on a real PostgreSQL and an S3 server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import prepare
from tests.gateway_process import GatewayProcess, environment
from tests.postgres_server import PostgresServer
from tests.s3_server import BUCKET, S3Server, s3_server

PAGE = Path(__file__).parents[1] / "docs" / "registry.md"
DATABASE, STORE = "postgresql://branchline@db.internal/branchline", "s3://models/branchline"


@pytest.fixture
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


def commands() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]


def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path, postgresql: PostgresServer, s3: S3Server) -> None:
    prepare(tmp_path).folder.rename(tmp_path / ".branchline")
    variables = environment(**s3.environment, HOME=str(tmp_path))
    variables["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    given = {DATABASE: postgresql.new_database().replace("+psycopg", ""), STORE: f"s3://{BUCKET}/branchline"}
    said: list[str] = []
    started: list[GatewayProcess] = []
    try:
        for line in commands():
            for shown, real in given.items():
                line = line.replace(shown, real)
            if line.startswith("export "):
                name, _, value = line.removeprefix("export ").partition("=")
                variables[name] = value
            elif line.startswith("branchline serve"):
                words = line.split()[2:]
                started.append(GatewayProcess.start(tmp_path / ".branchline", *words, **variables))
                started[-1].wait_until_serving()
            else:
                done = subprocess.run(
                    ["bash", "-c", line], env=variables, capture_output=True, text=True, timeout=120, check=False
                )
                assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
                said.append(done.stdout)
    finally:
        for gateway in started:
            gateway.stop()
    text = "\n".join(said)
    assert "copied up to serial 5: 1 routes, 5 events, 2 versions" in text
    assert text.count("2 of 2 versions are intact") == 2
    assert text.count("in force on 1 of 1 gateways") == 2
    assert "copied up to serial 7" in text
    assert (tmp_path / "backup.db").is_file()
