"""`branchline engine`: what it asks a gateway, and what it says where that does not answer as one."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from click.testing import CliRunner, Result

from adapters.errors import BranchlineError, NotFound
from router.auth import Gatekeeper
from router.commands.engine_cli import engine
from router.types import EngineStatus
from tests.gateway_parts import ScriptedEngine, Served, Stock, make_stock

KEY = "k-0123456789abcdef"
NAME = "http://10.0.0.7:8001/v1 ä"


class TwoEngines(ScriptedEngine):
    """One that can be drained, beside the echo engine."""

    drained = False

    @property
    def engines(self) -> list[EngineStatus]:
        return [*super().engines, EngineStatus(NAME, "draining" if self.drained else "up", outstanding=2)]

    async def drain(self, name: str) -> None:
        self._require(name)
        self.drained = True

    async def resume(self, name: str) -> None:
        self._require(name)
        self.drained = False

    def _require(self, name: str) -> None:
        if name != NAME:
            raise NotFound(f"no engine {name!r}")


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=1)


@pytest.fixture(scope="module")
def gateway(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    home = stock.copy(tmp_path_factory.mktemp("served") / "home")
    with Served(home, stock.base, Gatekeeper.for_bind("127.0.0.1", KEY), engine=TwoEngines(stock.base)) as served:
        yield served.url


def run(*words: str, key: str | None = KEY) -> Result:
    return CliRunner().invoke(engine, [*words], env={"BRANCHLINE_API_KEY": key})


def refusal(*words: str, key: str | None = KEY) -> str:
    done = run(*words, key=key)
    assert isinstance(done.exception, BranchlineError), done.output
    return str(done.exception)


def states(done: Result) -> dict[str, str]:
    assert done.exit_code == 0, done.exception
    return {one["name"]: one["state"] for one in json.loads(done.output)}


def test_an_engine_of_any_name_is_drained_and_resumed(gateway: str) -> None:
    where = ("--gateway", f"{gateway}/", "--json")
    assert states(run("list", *where)) == {"echo": "up", NAME: "up"}
    assert states(run("drain", NAME, *where)) == {"echo": "up", NAME: "draining"}
    assert states(run("list", *where)) == {"echo": "up", NAME: "draining"}
    assert states(run("resume", NAME, *where)) == {"echo": "up", NAME: "up"}


def test_the_list_is_a_table_for_people(gateway: str) -> None:
    lines = run("list", "--gateway", gateway).output.splitlines()
    assert lines[0].split() == ["name", "state", "outstanding", "resident", "restarts", "problem"]
    assert any(NAME in line for line in lines)


def test_an_unknown_engine_is_refused_by_its_name(gateway: str) -> None:
    assert "no engine 'nobody'" in refusal("drain", "nobody", "--gateway", gateway)
    assert "no engine '../x'" in refusal("drain", "../x", "--gateway", gateway)


@pytest.mark.parametrize("key", [None, "k-another-key-of-somebody"])
def test_a_missing_or_wrong_key_is_said_and_not_shown(gateway: str, key: str | None) -> None:
    said = refusal("list", "--gateway", gateway, key=key)
    assert "asks for another key (set BRANCHLINE_API_KEY" in said
    assert str(key) not in said


def test_a_gateway_that_is_down_is_said() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
    assert "no gateway answers at" in refusal("list", "--gateway", f"http://127.0.0.1:{port}")


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "file:///etc/passwd", ""])
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    assert "expected a URL" in refusal("list", "--gateway", url)


@pytest.mark.parametrize(("status", "content"), [(200, b"<html>"), (200, b"[]"), (500, b"oops"), (404, b"{}")])
def test_a_server_that_is_no_gateway_is_said(status: int, content: bytes) -> None:
    class Stranger(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Stranger) as server:
        thread = Thread(target=server.handle_request)
        thread.start()
        said = refusal("list", "--gateway", f"http://127.0.0.1:{server.server_port}")
        thread.join()
    assert "is no Branchline gateway" in said
