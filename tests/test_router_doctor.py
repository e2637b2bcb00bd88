"""`branchline doctor` finds what is wrong with an installation, and goes on looking after the first fault."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from adapters.classifiers import promote_classifier
from adapters.database import find_revision
from adapters.errors import BranchlineError, RegistryUnavailable
from adapters.home import Home
from adapters.registry import Registry
from adapters.types import GatewayRow, InForce
from router.commands.doctor import Finding, _vllm, doctor, examine
from router.settings import ENGINE_KEY, ENGINE_PYTHON
from tests.gateway_parts import Stock, classifier_versions, make_stock
from tests.postgres_server import PostgresServer
from tests.tiny_model import make_base

ENGINE_SECRET = "e-0123456789abcdef"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=2)


@pytest.fixture
def home(stock: Stock, tmp_path: Path) -> Home:
    copied = stock.copy(tmp_path / "home")
    copied.folder.chmod(0o700)
    registry = Registry.open(copied.registry_url)
    registry.create_route("booking")  # the classifier knows it
    promote_classifier(registry, 1)
    registry.close()
    return copied


def problems(findings: list[Finding]) -> dict[str, str]:
    return {one.what: one.found for one in findings if one.level == "problem"}


def test_a_sound_installation_has_no_problem_and_exits_0(home: Home, stock: Stock) -> None:
    done = CliRunner().invoke(doctor, ["--home", str(home.folder), "--base", str(stock.base.folder), "--json"])
    assert done.exit_code == 0, done.output
    found = {one["what"]: one for one in json.loads(done.output)}
    assert problems([Finding(**one) for one in found.values()]) == {}
    assert found["version sql@2"]["found"] == "intact"
    assert found["classifier"]["level"] == "ok"
    assert found["base"]["found"].startswith("tiny")


def test_a_problem_is_shown_and_exits_1(home: Home) -> None:
    home.folder.chmod(0o755)
    done = CliRunner().invoke(doctor, ["--home", str(home.folder)])
    assert isinstance(done.exception, BranchlineError)
    assert "chmod 700" in done.output


def test_every_fault_is_found_and_none_hides_another(home: Home, tmp_path: Path) -> None:
    registry = Registry.open(home.registry_url)
    registry.promote("sql", 1, forced="a test")
    registry.beat(GatewayRow("g-1", time.time(), 3, {"sql": InForce(3, None, "the engine refuses it")}))
    registry.close()
    sql = registry.version("sql", 1)
    weights = home.store / "sql" / sql.digest / "adapter_model.safetensors"
    weights.chmod(0o600)
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    classifier = home.store / "classifier" / classifier_versions(home)[0].digest / "weights.npy"
    classifier.unlink()
    found = problems(examine(home, str(make_base(tmp_path / "other", seed=7))))
    assert "was altered" in found["version sql@1"] or "another base" in found["version sql@1"]
    assert "weights.npy" in found["classifier"]
    assert found["gateway g-1"] == "route sql: the engine refuses it"
    assert "belongs to another base" in found["version regex@1"]


def test_a_registry_that_was_named_and_is_not_there_is_a_problem_and_is_not_made(
    home: Home, tmp_path: Path, postgresql: PostgresServer
) -> None:
    empty = postgresql.new_database()
    for url, found in ((f"sqlite:///{tmp_path / 'none.db'}", "its file does not exist"), (empty, "holds no registry")):
        assert found in problems(examine(replace(home, registry_url=url), None))["registry"]
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(RegistryUnavailable):
        find_revision(empty)


def test_a_registry_that_lacks_a_table_is_a_problem(home: Home) -> None:
    with closing(sqlite3.connect(home.folder / "registry.db")) as database:
        database.execute("DROP TABLE keys")
    assert problems(examine(home, None)) == {"registry": "lacks keys: restore it from a backup"}


def test_a_retired_version_may_be_gone(home: Home) -> None:
    registry = Registry.open(home.registry_url)
    registry.retire("sql", 2)
    folder = home.store / "sql" / registry.version("sql", 2).digest
    registry.close()
    folder.rename(folder.with_name("gone"))
    assert problems(examine(home, None)) == {}


def test_a_gateway_that_was_killed_is_no_problem_for_ever(home: Home) -> None:
    registry = Registry.open(home.registry_url)
    registry.beat(GatewayRow("g-1", time.time() - 3600, 3, {"sql": InForce(3, None, "long ago")}))
    registry.close()
    findings = examine(home, None)
    assert problems(findings) == {}
    assert [one.level for one in findings if one.what == "gateway g-1"] == ["note"]


def test_a_gateway_whose_base_nobody_looked_at_is_a_note(home: Home) -> None:
    registry = Registry.open(home.registry_url)
    registry.beat(GatewayRow("g-1", time.time(), 3, {}, base_id="tiny", base_fingerprint=None))
    registry.close()
    notes = [one.found for one in examine(home, None) if one.what == "gateway g-1" and one.level == "note"]
    assert notes == ["base unverified: nobody could look at the 'tiny' that its engine serves"]


def test_a_python_without_vllm_is_a_note_that_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_PYTHON, "/nowhere/python")
    (found,) = list(_vllm())
    assert (found.what, found.level) == ("engine vllm", "note")
    assert "/nowhere/python cannot be started" in found.found


class Engine(BaseHTTPRequestHandler):
    """Serves one base to who has the key, and nothing else."""

    def do_GET(self) -> None:
        allowed = self.headers.get("authorization") == f"Bearer {ENGINE_SECRET}"
        listed = allowed and self.path == "/v1/models"
        self.send_response(200 if listed else 404 if allowed else 401)
        self.end_headers()
        self.wfile.write(json.dumps({"data": [{"id": "tiny"}] if listed else []}).encode())

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


def test_engines_are_looked_at_each_on_its_own(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENGINE_KEY, ENGINE_SECRET)
    with ThreadingHTTPServer(("127.0.0.1", 0), Engine) as server:
        Thread(target=server.serve_forever).start()
        url, nobody = f"http://127.0.0.1:{server.server_port}", "http://127.0.0.1:9"
        findings = examine(home, None, (nobody, url))
        server.shutdown()
    found = problems(findings)
    assert found[f"engine at {nobody}"].startswith(f"no engine answers at {nobody}")
    assert "no version can be proved to be applied" in found[f"engine proof at {url}"]
    assert "base unverified" in {one.what: one.found for one in findings}[f"engine base at {url}"]
    assert ENGINE_SECRET not in str(findings)


def test_looking_makes_nothing(tmp_path: Path) -> None:
    absent = Home.at(tmp_path / "absent")
    assert problems(examine(absent, None)) == {}
    assert not absent.folder.exists()
    tmp_path.chmod(0o700)
    assert problems(examine(Home.at(tmp_path), None)) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["nonsense", "sqlite:////dev/null/registry.db", "postgresql+missing://x/y"])
def test_a_registry_that_cannot_be_opened_is_a_problem_and_no_traceback(tmp_path: Path, url: str) -> None:
    findings = examine(Home.at(tmp_path, url), None)
    assert any(one.what == "python" for one in findings)
    assert all("Traceback" not in one.found for one in findings)


def test_a_base_that_is_none_is_a_problem(home: Home, tmp_path: Path) -> None:
    assert "base" in problems(examine(home, str(tmp_path / "no-such-base")))


def test_the_key_is_never_shown(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRANCHLINE_API_KEY", "k-0123456789abcdef")
    findings = examine(home, None)
    assert "k-0123456789abcdef" not in str(findings)
    assert [one.level for one in findings if one.what == "key"] == ["ok"]
