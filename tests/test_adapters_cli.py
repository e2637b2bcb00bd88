"""The `adapter` and `route` commands: exit codes, what goes to which stream, and what is left on disk."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from sqlalchemy import select, update

from adapters import database, schema
from adapters import main as main_module
from adapters.check import WEIGHTS_FILE
from adapters.manifests import weights_digest
from adapters.registry import Registry
from adapters.types import GatewayRow, InForce
from tests.adapter_folders import evaluation, make_adapter, make_base, make_evidence

BRANCHLINE = [sys.executable, "-c", "from adapters.main import main; main()"]


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def refused(self, *expected: str) -> None:
        """Exit 1, nothing on stdout, and one line on stderr that holds `expected`."""
        assert self.code == 1
        assert self.out == ""
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("branchline: ")
        for one in expected:
            assert one in self.err


Run = Callable[..., Outcome]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def run(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `branchline` in this process, through `main` and its mapping of errors."""
    monkeypatch.setenv("BRANCHLINE_HOME", str(home))
    monkeypatch.delenv("BRANCHLINE_REGISTRY", raising=False)

    def invoke(*words: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["branchline", *map(str, words)])
        with pytest.raises(SystemExit) as done:
            main_module.main()
        captured = capsys.readouterr()
        code = done.value.code
        return Outcome(code if isinstance(code, int) else 0, captured.out, captured.err)

    return invoke


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return make_base(tmp_path / "pocket").folder


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return make_adapter(tmp_path / "adapter", "pocket")


@pytest.fixture
def shipped(run: Run, base: Path, adapter: Path) -> Run:
    """A home with the route `sql` and two live versions, the second in force."""
    assert run("route", "create", "sql").code == 0
    assert run("adapter", "add", "sql", adapter, "--base", base).code == 0
    other = make_adapter(adapter.parent / "other", "pocket", seed=2)
    assert run("adapter", "add", "sql", other, "--base", base).code == 0
    for number in (1, 2):
        assert run("route", "promote", f"sql@{number}", "--force", "shown to the team", "--no-wait").code == 0
    return run


# -- exit codes and streams -----------------------------------------------------------------------------------------


def test_a_task_is_shipped_with_evidence_and_every_step_exits_0(run: Run, base: Path, adapter: Path) -> None:
    evidence = make_evidence(weights_digest(adapter), json_fingerprint(base))
    (adapter.parent / "evidence.json").write_text(evidence.to_json())
    assert (
        run("route", "create", "sql", "--description", "questions to SQL").out == "route sql created with 0 examples\n"
    )
    added = run("adapter", "add", "sql", adapter, "--base", base, "--evidence", adapter.parent / "evidence.json")
    assert added.out.startswith("published sql@1 (rank 2, engine name sql@1.")
    done = run("route", "promote", "sql@1")
    assert done.code == 0
    assert done.out == "sql@1 promoted (serial 4): no gateway is running; it takes effect when one starts\n"
    assert done.err == ""


def json_fingerprint(base: Path) -> str:
    from adapters.base import find_base

    return find_base(str(base)).fingerprint


@pytest.mark.parametrize(
    "words",
    [
        ["nonsense"],
        ["route", "nonsense"],
        ["route", "create"],
        ["route", "create", "sql", "--nonsense"],
        ["route", "rollback", "sql", "--to", "two"],
        ["adapter", "add", "sql", "folder"],
        ["route", "set", "sql"],
    ],
)
def test_wrong_usage_exits_2_with_the_usage_on_stderr(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.code, done.out) == (2, "")
    assert "Error: " in done.err


@pytest.mark.parametrize("words", [["--help"], ["route", "--help"], ["adapter", "add", "-h"], ["--version"]])
def test_help_and_version_exit_0_on_stdout(run: Run, words: list[str]) -> None:
    done = run(*words)
    assert (done.code, done.err) == (0, "")
    assert done.out


def test_an_exit_code_that_a_command_asks_for_is_the_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @click.command()
    @click.pass_context
    def failing(context: click.Context) -> None:
        context.exit(1)

    monkeypatch.setattr(main_module, "cli", failing)
    monkeypatch.setattr(sys, "argv", ["branchline"])
    with pytest.raises(SystemExit) as done:
        main_module.main()
    assert done.value.code == 1
    assert capsys.readouterr().err == ""


def test_a_wait_for_a_cold_version_is_set_in_whole_milliseconds(run: Run) -> None:
    run("route", "create", "sql")
    assert "'cold_wait_ms': 500" in run("route", "set", "sql", "cold_wait_ms=500").out
    for wrong in ("60001", "-1", "0.5", "soon"):
        run("route", "set", "sql", f"cold_wait_ms={wrong}").refused("expected a whole number from 0 to 60000")


def test_every_refusal_is_one_line_with_what_to_do(run: Run, tmp_path: Path, base: Path, adapter: Path) -> None:
    run("route", "show", "sql").refused("no route 'sql'", "branchline route list")
    run("route", "create", "SQL").refused("does not match")
    run("route", "create", "base").refused("reserved")
    assert run("route", "create", "sql").code == 0
    run("route", "create", "sql").refused("exists already")
    run("route", "promote", "sql@1").refused("no version sql@1")
    run("route", "promote", "sql").refused("names a route, not a version")
    run("route", "promote", "sql@x").refused("names no version")
    run("route", "rollback", "sql").refused("no earlier version", "route disable sql")
    run("route", "enable", "sql").refused("enabled already")
    run("route", "set", "sql", "min_item=3").refused("unknown policy key 'min_item'", "known keys: min_items")
    run("route", "disable", "sql", "--expect-revision", "9").refused("at revision 1, expected 9")
    run("route", "examples", "add", "sql").refused("no examples given")
    run("route", "examples", "add", "sql", "--text", " ").refused("example 1 is empty")
    run("route", "examples", "add", "sql", "--file", tmp_path / "none").refused("cannot read none")
    run("adapter", "add", "sql", tmp_path / "none", "--base", base).refused("none cannot be served", "not a folder")
    run("adapter", "add", "sql", adapter, "--base", tmp_path / "no-base").refused("no-base")
    run("adapter", "add", "sql", adapter, "--base", base, "--evidence", tmp_path / "e").refused(
        "cannot read", "No such"
    )
    run("adapter", "retire", "sql@4").refused("no version sql@4")
    run("adapter", "verify", "sql@4").refused("no version sql@4")


def test_bad_adapters_are_refused_with_all_problems_on_one_line(run: Run, base: Path, adapter: Path) -> None:
    run("route", "create", "sql")
    bad = make_adapter(adapter.parent / "bad", "pocket", use_dora=True, bias="x\ny")
    run("adapter", "add", "sql", bad, "--base", base).refused("2 problems", "DoRA", "bias is")


def test_examples_that_cannot_be_added_do_not_leave_a_route_behind(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "x" * 100_001}))
    run("route", "create", "sql", "--examples", tmp_path / "rows.jsonl").refused("over 100000 characters")
    assert run("route", "create", "sql").code == 0


def test_text_that_is_not_unicode_is_refused(run: Run) -> None:
    assert run("route", "create", "sql").code == 0
    run("route", "examples", "add", "sql", "--text", "\udcff").refused("example 1 is not UTF-8 text")
    run("route", "disable", "sql", "--why", "\udcff").refused("reason given is not UTF-8 text")
    run("route", "create", "other", "--description", "\udcff").refused("what was given is not UTF-8 text")
    run("key", "create", "app", "--role", "inference", "--why", "a\0b").refused("UTF-8 text without NUL")
    assert run("route", "show", "sql", "--json").json["enabled"] is True


# -- listings -------------------------------------------------------------------------------------------------------


def test_every_listing_is_json_where_asked_for(shipped: Run) -> None:
    shipped("route", "examples", "add", "sql", "--text", "größe\n2", "--text", "two")
    assert [one["name"] for one in shipped("route", "list", "--json").json] == ["sql"]
    shown = shipped("route", "show", "sql", "--json").json
    assert (shown["live"], shown["previous"], shown["policy"]["min_items"]) == (2, 1, 50)
    assert shipped("route", "examples", "list", "sql", "--json").json == [{"text": "größe\n2"}, {"text": "two"}]
    assert [one["stage"] for one in shipped("adapter", "list", "--json").json] == ["previous", "live"]
    assert [one["version"] for one in shipped("adapter", "list", "sql", "--json").json] == ["sql@1", "sql@2"]
    version = shipped("adapter", "show", "sql@2", "--json").json
    assert version["engine_name"] == f"sql@2.{version['digest'][:16]}"
    assert shipped("adapter", "show", version["engine_name"], "--json").json == version
    assert shipped("adapter", "verify", "--json").json == {"verified": 2, "faults": {}}
    assert len(shipped("route", "history", "sql", "--json").json) == 6


def test_every_listing_is_a_table_without_json(shipped: Run) -> None:
    shipped("route", "examples", "add", "sql", "--text", "how many ships are there")
    for words in (
        ["route", "list"], ["route", "show", "sql"], ["route", "history", "sql"], ["adapter", "list"],
        ["adapter", "show", "sql@1"], ["adapter", "verify"], ["route", "examples", "list", "sql"],
    ):  # fmt: skip
        done = shipped(*words)
        assert (done.code, done.err) == (0, "")
        assert done.out


def test_the_history_says_who_when_what_and_why_and_keeps_forced_promotions(shipped: Run) -> None:
    shipped("route", "disable", "sql", "--why", "it answers nonsense", "--no-wait")
    shipped("route", "enable", "sql", "--no-wait")
    shipped("route", "rollback", "sql", "--why", "worse on joins", "--no-wait")
    events = shipped("route", "history", "sql", "--json").json
    assert [event["kind"] for event in events] == [
        "route_created", "published", "published", "promoted", "promoted", "disabled", "enabled", "rolled_back",
    ]  # fmt: skip
    assert [event["serial"] for event in events] == list(range(1, 9))
    assert all("@" in event["actor"] and event["time"].endswith("+00:00") for event in events)
    forced = events[4]
    assert forced["why"] == "shown to the team"
    assert forced["payload"]["forced"] is True
    assert forced["payload"]["gate"]["unmet"] == ["the version has no evidence"]
    table = shipped("route", "history", "sql").out
    for expected in (
        "it answers nonsense",
        "shown to the team",
        "worse on joins",
        events[0]["actor"],
        events[0]["time"],
    ):
        assert expected in table


def test_a_reason_with_line_ends_and_terminal_codes_forges_no_line_of_the_history(shipped: Run) -> None:
    before = len(shipped("route", "history", "sql").out.splitlines())
    shipped("route", "disable", "sql", "--why", "x\n99  2026  promoted\x1b[2J", "--no-wait")
    out = shipped("route", "history", "sql").out
    assert len(out.splitlines()) == before + 1
    assert "\x1b" not in out


def test_a_forced_promotion_says_on_stderr_what_it_forced(run: Run, base: Path, adapter: Path) -> None:
    run("route", "create", "sql")
    run("adapter", "add", "sql", adapter, "--base", base)
    run("route", "promote", "sql@1").refused("does not pass the promotion gate", "no evidence", "--force")
    run("route", "promote", "sql@1", "--force", " ").refused("--force needs a reason")
    assert run("route", "promote", "sql@1", "--force", "why").err == "forced over: the version has no evidence\n"


def test_verify_exits_1_and_names_what_was_altered(shipped: Run, home: Path) -> None:
    digest = shipped("adapter", "show", "sql@1", "--json").json["digest"]
    file = home / "store" / "sql" / digest / WEIGHTS_FILE
    file.chmod(0o600)
    file.write_bytes(b"x")
    done = shipped("adapter", "verify", "--json")
    assert done.code == 1
    assert done.json["verified"] == 1
    assert f"{WEIGHTS_FILE} was altered" in done.json["faults"]["sql@1"]
    assert done.err.count("\n") == 1


def test_an_engine_name_of_other_bytes_is_refused(shipped: Run) -> None:
    shipped("adapter", "show", "sql@1.0000000000000000").refused("sql@1 is sql@1.")


def test_what_is_left_behind_is_noted_on_stderr(run: Run, base: Path, adapter: Path) -> None:
    run("route", "create", "sql")
    (adapter / "evil\nname").write_text("x")
    done = run("adapter", "add", "sql", adapter, "--base", base, "--json")
    assert done.err == "left behind: evil\\nname\n"
    assert done.json["created"] is True


def test_evidence_is_attached_and_listed(shipped: Run, base: Path, tmp_path: Path) -> None:
    digest = shipped("adapter", "show", "sql@1", "--json").json["digest"]
    evidence = make_evidence(digest, json_fingerprint(base), target=evaluation(n=50, file="a"))
    (tmp_path / "evidence.json").write_text(evidence.to_json())
    assert shipped("adapter", "evidence", "sql@1", tmp_path / "evidence.json").code == 0
    assert shipped("adapter", "show", "sql@1", "--json").json["evidence"] == [evidence.digest]
    shipped("adapter", "evidence", "sql@2", tmp_path / "evidence.json").refused("speaks of weights")


def test_retiring_the_live_version_lets_the_one_before_take_over(shipped: Run) -> None:
    assert shipped("adapter", "retire", "sql@2", "--why", "leaks names").code == 0
    assert shipped("route", "show", "sql", "--json").json["live"] == 1
    shipped("route", "promote", "sql@2", "--force", "again").refused("sql@2 is retired")


# -- gateways -------------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(home: Path) -> Iterator[Registry]:
    opened = Registry.open(f"sqlite:///{home / 'registry.db'}", actor="gateway")
    yield opened
    opened.close()


def beat(registry: Registry, name: str, serial: int, problem: str | None = None, *, age: float = 0) -> None:
    in_force = {"sql": InForce(serial, None, problem)}
    registry.beat(GatewayRow(name, time.time() - age, serial, in_force))


def test_a_traffic_command_counts_the_gateways_that_follow_and_names_the_laggard_and_the_silent_one(
    shipped: Run, registry: Registry
) -> None:
    beat(registry, "swift", 999)
    beat(registry, "dead", 1, age=60)
    done = shipped("route", "disable", "sql")
    assert "in force on 1 of 1 gateways after " in done.out
    beat(registry, "slow", 3, "warming up")
    done = shipped("route", "enable", "sql")
    assert done.code == 0
    assert "in force on 1 of 2 gateways after " in done.out
    slow, dead = done.out.removesuffix("\n").split("; ", 1)[1].rsplit("; dead: ", 1)
    assert slow == "slow: still at serial 3, wanted 7 (warming up)"
    assert re.fullmatch(r"silent for \d+ s; if it is only cut off, it serves as before", dead)
    assert shipped("route", "show", "sql", "--json").json["gateways"]["slow"]["problem"] == "warming up"


def test_a_gateway_that_could_not_look_at_its_base_is_named_while_it_lives(shipped: Run, registry: Registry) -> None:
    def told(name: str, base: str | None, fingerprint: str | None, *, age: float = 0) -> None:
        row = GatewayRow(name, time.time() - age, 1, {}, base_id=base, base_fingerprint=fingerprint)
        registry.beat(row)

    told("sure", "tiny", "f" * 64)
    told("older", None, None)  # as a Branchline wrote it that told nothing of its base
    told("dead", "tiny", None, age=60)
    assert shipped("route", "show", "sql", "--json").json["base_unverified"] == []
    assert "base unverified on" not in shipped("route", "show", "sql").out
    told("unsure", "tiny", None)
    assert shipped("route", "show", "sql", "--json").json["base_unverified"] == ["unsure"]
    assert shipped("route", "show", "sql").out.endswith("base unverified on 1 gateway\n")


def test_a_heartbeat_of_a_branchline_that_told_nothing_of_its_base_is_read(registry: Registry) -> None:
    beat(registry, "older", 3)
    with registry.transaction() as connection:
        connection.execute(update(schema.gateways).values(document={"routes": {}, "classifier_digest": None}))
    (row,) = registry.gateways()
    assert (row.base_id, row.base_fingerprint, row.base_unverified) == (None, None, False)


def test_no_wait_returns_at_once_with_the_serial(shipped: Run, registry: Registry) -> None:
    beat(registry, "slow", 1)
    assert shipped("route", "disable", "sql", "--no-wait").out == "route sql disabled (serial 6)\n"


# -- examples and forgetting ----------------------------------------------------------------------------------------


def bytes_of(home: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(home.rglob("*")) if file.is_file())


@pytest.mark.parametrize("size", [20, 3_000, 60_000])
def test_forgetting_leaves_no_byte_of_the_text_in_any_file_of_the_home(
    run: Run, home: Path, tmp_path: Path, registry: Registry, size: int
) -> None:
    secrets = [f"SECRET-{number}-".encode() for number in range(40)]
    rows = [json.dumps({"text": secret.decode().ljust(size, "x")}) for secret in secrets]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    assert run("route", "create", "sql", "--examples", tmp_path / "rows.jsonl").code == 0
    assert run("route", "create", "other").code == 0
    assert run("route", "examples", "add", "other", "--text", "kept " * 1000).code == 0
    registry.serial()  # another process that keeps the database open, as a gateway does
    assert all(secret in bytes_of(home) for secret in secrets)
    assert run("route", "examples", "remove", "sql", "--text", json.loads(rows[7])["text"]).code == 0
    assert secrets[7] not in bytes_of(home)
    assert run("route", "forget", "sql", "--why", "asked for").out == "39 examples of sql deleted\n"
    assert not [secret for secret in secrets if secret in bytes_of(home)]
    assert run("route", "examples", "list", "sql", "--json").json == []
    assert len(run("route", "examples", "list", "other", "--json").json) == 1
    event = run("route", "history", "sql", "--json").json[-1]
    assert (event["kind"], event["why"], event["payload"]["removed"]) == ("route_forgotten", "asked for", 39)


def test_forgetting_says_so_where_a_reader_still_holds_the_bytes(
    run: Run, home: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("route", "create", "sql")
    run("route", "examples", "add", "sql", "--text", "SECRET")
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    with registry.reading() as connection:
        connection.execute(select(schema.examples)).all()
        run("route", "forget", "sql").refused("log still holds its bytes", "run the command again")
    assert run("route", "forget", "sql").code == 0
    assert b"SECRET" not in bytes_of(home)


# -- the home and its registry --------------------------------------------------------------------------------------


def test_the_home_and_everything_in_it_is_its_owners_alone(shipped: Run, home: Path) -> None:
    folders = [home, *(path for path in home.rglob("*") if path.is_dir())]
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in folders} == {0o700}


def test_the_home_is_private_also_where_the_registry_lies_elsewhere(
    run: Run, home: Path, tmp_path: Path, base: Path, adapter: Path
) -> None:
    elsewhere = f"sqlite:///{tmp_path / 'else' / 'where' / 'r.db'}"
    assert run("route", "create", "sql", "--registry", elsewhere).code == 0
    assert run("adapter", "add", "sql", adapter, "--base", base, "--registry", elsewhere).code == 0
    for folder in (home, home / "store", tmp_path / "else", tmp_path / "else" / "where"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("name", ["a b", "a%20b", "a?b=c", "a#b", "grüße"])
def test_a_home_may_have_any_name(run: Run, tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    assert run("route", "create", "sql", "--home", folder).code == 0
    assert (folder / "registry.db").exists()
    assert [one["name"] for one in run("route", "list", "--json", "--home", folder).json] == ["sql"]


def test_an_unknown_schema_number_is_refused(shipped: Run, home: Path) -> None:
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("UPDATE registry SET schema = 2")
    connection.close()
    shipped("route", "list").refused("the registry has schema 2, this version reads 1", "Branchline version")


def test_a_file_that_is_no_database_is_refused(run: Run, home: Path) -> None:
    home.mkdir()
    (home / "registry.db").write_bytes(b"no database at all, but long enough to have a header" * 9)
    run("route", "list").refused("cannot open the registry: file is not a database", "--registry")


def test_another_programs_database_is_refused(run: Run, home: Path) -> None:
    home.mkdir()
    with sqlite3.connect(home / "registry.db") as connection:
        connection.execute("CREATE TABLE registry (x)")
    connection.close()
    run("route", "list").refused("cannot open the registry", "no such column")


def test_a_home_that_is_a_file_is_refused(run: Run, home: Path, base: Path, adapter: Path) -> None:
    home.write_text("x")
    run("route", "list").refused("cannot open the registry")


def test_a_store_that_cannot_be_written_is_one_line(run: Run, home: Path, base: Path, adapter: Path) -> None:
    run("route", "create", "sql")
    (home / "store").write_text("x")
    run("adapter", "add", "sql", adapter, "--base", base).refused("store")


@pytest.mark.parametrize("url", ["nonsense", "nosuch://x/y", "sqlite:////proc/none/registry.db"])
def test_a_registry_url_that_leads_nowhere_is_refused(run: Run, url: str) -> None:
    run("route", "list", "--registry", url).refused("cannot open the registry")


@pytest.mark.parametrize("command", ["route list", "key list", "registry show", "route disable sql"])
def test_a_registry_that_was_named_and_is_not_there_is_refused_and_not_made(
    run: Run, tmp_path: Path, command: str
) -> None:
    mistyped = tmp_path / "mistyped" / "registry.db"
    run(*command.split(), "--registry", f"sqlite:///{mistyped}").refused(
        "its file does not exist", "BRANCHLINE_REGISTRY"
    )
    assert not mistyped.parent.exists()


def test_a_locked_registry_is_refused_after_waiting_and_readers_go_on(
    shipped: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 50)
    lock = sqlite3.connect(home / "registry.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    shipped("route", "disable", "sql").refused("database is locked")
    assert shipped("route", "list").code == 0
    lock.execute("ROLLBACK")
    lock.close()
    assert shipped("route", "disable", "sql").code == 0


def test_a_registry_that_may_only_be_read_is_refused_on_writing(
    shipped: Run, home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    read_only = f"sqlite:///file:{home / 'registry.db'}?mode=ro&uri=true"
    monkeypatch.chdir(tmp_path)
    shipped("route", "disable", "sql", "--registry", read_only).refused("readonly database")
    assert not (tmp_path / "file:").exists()


# -- real processes -------------------------------------------------------------------------------------------------


def process(home: Path, *words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    command = BRANCHLINE if code is None else [sys.executable, "-c", code]
    return subprocess.run(
        [*command, *words],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "BRANCHLINE_HOME": str(home)},
    )


def test_disabling_a_route_imports_neither_torch_nor_sklearn_nor_a_web_framework(shipped: Run, home: Path) -> None:
    code = (
        "import sys, atexit\n"
        "heavy = {'torch', 'sklearn', 'scipy', 'fastapi', 'starlette', 'pydantic', 'transformers', 'httpx'}\n"
        "atexit.register(lambda: print('heavy:', sorted(heavy & set(sys.modules))))\n"
        "from adapters.main import main; main()"
    )
    done = process(home, "route", "disable", "sql", code=code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("heavy: []\n")
    assert "route sql disabled" in done.stdout


def test_a_real_process_exits_0_1_and_2(shipped: Run, home: Path) -> None:
    listed = process(home, "route", "list", "--json")
    assert (listed.returncode, listed.stderr) == (0, "")
    assert json.loads(listed.stdout)[0]["name"] == "sql"
    refused = process(home, "route", "show", "none")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("branchline: no route 'none'")
    assert refused.stderr.count("\n") == 1
    assert process(home, "route", "show").returncode == 2


def test_a_reader_that_goes_away_is_no_traceback(shipped: Run, home: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*BRANCHLINE, "route", "history", "sql"],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "BRANCHLINE_HOME": str(home)},
    )
    os.close(writer)
    assert b"Traceback" not in done.stderr
