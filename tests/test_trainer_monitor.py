"""`branchline monitor` against a real gateway in a process of its own, and its judgement as a pure function."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from adapters.base import Base, find_base
from adapters.convergence import wait_in_force
from adapters.evidence import Evaluation, Evidence, Item, Metric, RoutedTo, Score, parse_evidence
from adapters.home import Home
from adapters.publish import attach_evidence, publish_folder
from adapters.registry import Registry
from adapters.rows import read_examples, sha256_file
from adapters.store import Store
from adapters.types import AdapterVersion
from tests.gateway_process import BRANCHLINE, GatewayProcess, branchline, environment, serving
from tests.tiny_model import make_adapter, make_base
from tests.trainer_base import encoded, lora_model, make_trainable_base
from trainer.cli import evaluate
from trainer.errors import CheckpointInvalid, Degraded, FolderOccupied, NothingToCompare
from trainer.evaluate import Evaluator
from trainer.model import save_adapter
from trainer.monitoring.cli import monitor
from trainer.monitoring.live import ERRORS_IN_A_ROW, NOT_ASKED
from trainer.monitoring.sequential_test import Drop
from trainer.monitoring.state import StateFile
from trainer.monitoring.verdict import (
    Expected,
    Measured,
    Plan,
    judge,
    parse_interval,
    seconds_until,
    set_level,
    severity,
    worst,
)

ITEMS = 40
RIGHT = 30  # rows whose answer the echo engine gives: it repeats the question
NOBODY = "http://127.0.0.1:9"  # the discard port: nothing answers there


@dataclass(slots=True)
class Stage:
    """A home with a gateway on it. `rows` ask for what the echo engine says in `RIGHT` of `ITEMS` rows."""

    home: Home
    base: Base
    folders: tuple[Path, ...]
    rows: Path
    guardrail: Path
    registry: Registry
    store: Store
    gateway: GatewayProcess
    events: list[dict[str, Any]] = field(default_factory=list)  # of the last `watch`

    def route(self, name: str, claims: Sequence[int], metric: Metric = "contains") -> AdapterVersion:
        """A route whose version n has evidence that it is right on the first `claims[n]` rows; the last one is live."""
        self.registry.create_route(name)
        for number, claim in enumerate(claims, start=1):
            published = publish_folder(self.registry, self.store, name, self.folders[number - 1], self.base)
            attach_evidence(
                self.registry, self.store, published.version, self.evidence(published.version, claim, metric)
            )
            self.promote(name, number)
        return self.registry.version(name, len(claims))

    def evidence(
        self, version: AdapterVersion, claim: int, metric: Metric = "contains", by_base: int | None = None
    ) -> Evidence:
        """`by_base`: all rows were routed to the base, which was right on so many of them; `None`: not routed."""

        def evaluation(file: Path, right: int) -> Evaluation:
            routed_to: RoutedTo | None = None if by_base is None else "base"
            items = tuple(
                Item(
                    row.digest,
                    Score(float(index < (by_base or 0)), 1.0, 8),
                    Score(float(index < right), 0.5, 8),
                    routed_to,
                )
                for index, row in enumerate(read_examples(file))
            )
            return Evaluation(file.stem, sha256_file(file), metric, items)

        target, guardrail = evaluation(self.rows, claim), evaluation(self.guardrail, ITEMS)
        return Evidence(version.digest, self.base.fingerprint, "2026-01-01", target, (guardrail,))

    def promote(self, name: str, number: int) -> None:
        change = self.registry.promote(name, number, forced="a test")
        found = wait_in_force(
            self.registry, change.event.serial, route=name, started=time.monotonic(), timeout_seconds=60
        )
        assert len(found.in_force) == 1, found

    def watch(self, name: str, *words: str, url: str | None = None, guardrail: bool = False) -> list[dict[str, Any]]:
        """The events of `monitor --once --json`; raises what it raises."""
        done = CliRunner().invoke(monitor, self.words(name, *words, url=url, guardrail=guardrail))
        self.events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        if done.exception is not None:
            raise done.exception
        return self.events

    def words(self, name: str, *words: str, url: str | None = None, guardrail: bool = False) -> list[str]:
        more = ("--guardrail", str(self.guardrail)) if guardrail else ()
        where = ("--url", url or self.gateway.url, "--target", str(self.rows), "--home", str(self.home.folder))
        return [name, *where, *more, *(words if "--every" in words else ("--once", *words)), "--json"]


def write_rows(path: Path, right: int) -> Path:
    rows = [
        {"input": f"{path.stem} {n}", "output": f"{path.stem} {n}" if n < right else "never said"} for n in range(ITEMS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    root = tmp_path_factory.mktemp("monitored")
    base = find_base(str(make_base(root / "tiny")))
    folders = tuple(make_adapter(base.folder, root / f"adapter-{n}", seed=n, rank=2) for n in range(3))
    home = Home.at(root / "home")
    home.folder.mkdir()
    registry = Registry.open(home.registry_url)
    with serving(home.folder, "--backend", "echo", "--base", str(base.folder)) as gateway:
        rows, guardrail = write_rows(root / "rows.jsonl", RIGHT), write_rows(root / "general.jsonl", ITEMS)
        yield Stage(home, base, folders, rows, guardrail, registry, Store(home.store), gateway)
    registry.close()


def history(stage: Stage, route: str) -> list[tuple[str, str | None]]:
    return [(event.kind, event.why) for event in stage.registry.events(route=route)]


def test_a_version_that_keeps_what_its_evidence_says_raises_nothing(stage: Stage) -> None:
    version = stage.route("quiet", [RIGHT])
    (look,) = stage.watch("quiet", guardrail=True)
    assert (look["event"], look["severity"], look["version"]) == ("look", None, "quiet@1")
    assert look["engine_name"] == version.engine_name
    target, guardrail = look["sets"]
    assert (target["reference"], target["live"], target["drop"]["pairs"]) == (0.75, 0.75, ITEMS)
    assert (guardrail["kind"], guardrail["live"], guardrail["drop"]["worse"]) == ("guardrail", 1.0, 0)
    assert target["level"] == set_level(Plan(), 1, 2)
    assert target["others"] == target["errors"] == {}


def test_a_version_that_contradicts_its_evidence_is_rolled_back_and_the_history_says_why(stage: Stage) -> None:
    """The whole command, in a process of its own: 40 of 40 claimed, 30 answered. P = ½¹⁰ of ten all worse."""
    stage.route("worse", [RIGHT, ITEMS])
    words = stage.words("worse", "--rollback")
    done = subprocess.run(
        [BRANCHLINE, "monitor", *words], capture_output=True, text=True, env=environment(), timeout=120, check=False
    )
    assert done.returncode == 1
    look, back = [json.loads(line) for line in done.stdout.splitlines()]
    assert (look["severity"], look["sets"][0]["drop"]["p"]) == ("critical", 0.5**10)
    assert (back["event"], back["live"]) == ("rolled_back", 1)
    assert back["in_force"].startswith("in force on 1 of 1 gateways")
    state = stage.registry.route("worse")
    assert (state.live, state.enabled) == (1, True)
    kind, why = history(stage, "worse")[-1]
    assert kind == "rolled_back"
    assert why is not None
    assert "monitor, look 1 of 24 at worse@2: target rows: contains 1.000 → 0.750 (-25.0 points on 40 items" in why
    assert done.stderr.startswith("branchline: monitor, look 1 of 24 at worse@2")
    (quiet,) = stage.watch("worse")
    assert (quiet["version"], quiet["severity"], quiet["look"]) == ("worse@1", None, 1)


def test_a_guardrail_is_held_to_what_the_classifier_made_of_it_too(stage: Stage) -> None:
    """Without a classifier `auto` is answered by the base, which repeats the question: right on all of the rows."""
    version = stage.route("seen", [RIGHT])
    attach_evidence(stage.registry, stage.store, version, stage.evidence(version, RIGHT, by_base=ITEMS))
    (look,) = stage.watch("seen", "--routed", guardrail=True)
    assert [one["name"] for one in look["sets"]] == ["rows", "general", "general (routed)"]
    routed = look["sets"][2]
    assert (routed["kind"], routed["live"], routed["drop"]["pairs"], routed["others"]) == ("guardrail", 1.0, ITEMS, {})
    assert routed["level"] == set_level(Plan(), 1, 3)


def test_what_users_get_may_have_become_worse_where_the_version_itself_did_not(stage: Stage) -> None:
    version = stage.route("misrouted", [RIGHT])
    attach_evidence(stage.registry, stage.store, version, stage.evidence(version, RIGHT, by_base=ITEMS))
    hard = write_rows(stage.rows.parent / "hard.jsonl", RIGHT)
    claims = replace(stage.evidence(version, RIGHT), guardrails=())
    items = tuple(
        Item(row.digest, Score(1.0, 1.0, 8), Score(float(index < RIGHT), 0.5, 8), "base")
        for index, row in enumerate(read_examples(hard))
    )
    guardrail = Evaluation("hard", sha256_file(hard), "contains", items)
    attach_evidence(stage.registry, stage.store, version, replace(claims, guardrails=(guardrail,)))
    assert stage.watch("misrouted", "--guardrail", str(hard))[0]["severity"] is None
    with pytest.raises(Degraded, match=r"guardrail hard \(routed\): contains 1.000 → 0.750"):
        stage.watch("misrouted", "--guardrail", str(hard), "--routed")


def test_routed_needs_guardrails_and_evidence_with_decisions(stage: Stage) -> None:
    stage.route("undecided", [RIGHT])
    with pytest.raises(NothingToCompare, match=r"general \(routed\) that says where the classifier sends them"):
        stage.watch("undecided", "--routed", guardrail=True)
    done = CliRunner().invoke(monitor, stage.words("undecided", "--routed"))
    assert (done.exit_code, "at least one --guardrail" in done.stderr) == (2, True)


def test_where_nothing_is_below_the_route_is_disabled(stage: Stage) -> None:
    stage.route("lowest", [ITEMS])
    with pytest.raises(Degraded, match="look 1 of 24 at lowest@1"):
        stage.watch("lowest", "--rollback")
    assert stage.events[-1]["event"] == "disabled"
    assert not stage.registry.route("lowest").enabled
    assert "monitor, look 1" in str(history(stage, "lowest")[-1][1])
    with pytest.raises(NothingToCompare, match="disabled or has no live version"):
        stage.watch("lowest")


def test_without_rollback_the_route_stays_and_the_verdict_is_remembered(stage: Stage) -> None:
    """The second run asks nobody: a test that has rejected is over, what is left is to act on it."""
    stage.route("kept", [RIGHT, ITEMS])
    with pytest.raises(Degraded, match="route rollback kept"):
        stage.watch("kept")
    assert stage.registry.route("kept").live == 2
    with pytest.raises(Degraded, match="look 1 of 24"):
        stage.watch("kept", "--rollback", url=NOBODY)
    assert [event["event"] for event in stage.events] == ["rolled_back"]
    assert stage.registry.route("kept").live == 1


def test_looks_are_counted_across_restarts_and_a_new_version_begins_anew(stage: Stage) -> None:
    stage.route("counted", [RIGHT])
    plan = Plan(looks=2)
    looks = [stage.watch("counted", "--checks", "2")[0] for _ in range(2)]
    assert [look["look"] for look in looks] == [1, 2]
    assert [look["sets"][0]["level"] for look in looks] == [set_level(plan, number, 1) for number in (1, 2)]
    with pytest.raises(NothingToCompare, match="all 2 planned looks at counted@1 are done"):
        stage.watch("counted", "--checks", "2")
    assert stage.watch("counted", "--checks", "2", "--every", "1h") == [
        {"event": "finished", "version": "counted@1", "looks": 2}
    ]
    assert stage.watch("counted", "--checks", "2", "--restart")[0]["look"] == 1
    second = publish_folder(stage.registry, stage.store, "counted", stage.folders[1], stage.base).version
    attach_evidence(stage.registry, stage.store, second, stage.evidence(second, RIGHT))
    stage.promote("counted", 2)
    assert [(one["version"], one["look"]) for one in stage.watch("counted", "--checks", "2")] == [("counted@2", 1)]


def test_a_first_check_may_be_the_reference(stage: Stage) -> None:
    stage.route("first", [ITEMS])
    words = ("--reference", "first", "--metric", "token_f1")
    assert stage.watch("first", *words) == [{"event": "reference", "version": "first@1", "items": {"rows": ITEMS}}]
    (look,) = stage.watch("first", *words)
    found = look["sets"][0]
    assert (found["metric"], found["drop"]["size"], found["drop"]["pairs"]) == ("token_f1", 0, ITEMS)
    assert 0 < found["reference"] == found["live"] < 1


def test_another_version_or_an_evidence_file_may_be_the_reference(stage: Stage, tmp_path: Path) -> None:
    version = stage.route("compared", [ITEMS, RIGHT])
    assert stage.watch("compared")[0]["severity"] is None
    with pytest.raises(Degraded):
        stage.watch("compared", "--reference", "compared@1")
    (tmp_path / "evidence.json").write_text(stage.evidence(version, ITEMS).to_json(), encoding="utf-8")
    with pytest.raises(Degraded):
        stage.watch("compared", "--reference", str(tmp_path / "evidence.json"))


def test_rows_without_evidence_and_metrics_that_text_does_not_show_are_refused(stage: Stage, tmp_path: Path) -> None:
    stage.route("unknown", [RIGHT], metric="perplexity")
    other = write_rows(tmp_path / "other.jsonl", ITEMS)
    with pytest.raises(
        NothingToCompare, match=r"rows was scored by perplexity.*no evidence on these very rows of other.*first"
    ):
        stage.watch("unknown", "--guardrail", str(other))


def test_a_gateway_that_is_gone_is_an_error_and_not_a_worse_version(stage: Stage) -> None:
    stage.route("gone", [ITEMS])
    with pytest.raises(NothingToCompare, match=f"0 of 40 items.* × ConnectError, .* × {NOT_ASKED}") as raised:
        stage.watch("gone", "--rollback", url=NOBODY, guardrail=False)
    assert f"{ERRORS_IN_A_ROW} × ConnectError" in str(raised.value)
    assert stage.registry.route("gone").live == 1
    with pytest.raises(Degraded, match="look 1 of 24"):
        stage.watch("gone")


def test_ctrl_c_ends_a_schedule_at_once_and_what_was_seen_is_kept(stage: Stage) -> None:
    stage.route("scheduled", [RIGHT])
    process = subprocess.Popen(
        [BRANCHLINE, "monitor", *stage.words("scheduled", "--every", "1h")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["look"] == 1
    waiting = json.loads(process.stdout.readline())
    assert (waiting["event"], waiting["version"]) == ("waiting", "scheduled@1")
    assert 0 < waiting["seconds"] <= 3600
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, "interrupted")
    assert stage.watch("scheduled")[0]["look"] == 2


def test_ctrl_c_ends_a_look_in_the_middle_of_its_requests(stage: Stage) -> None:
    """The gateway is one that takes a request and never answers it."""
    stage.route("hanging", [RIGHT])
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        process = subprocess.Popen(
            [BRANCHLINE, "monitor", *stage.words("hanging", url=url)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        listening.settimeout(60)
        with listening.accept()[0] as connection:
            assert connection.recv(4)
            process.send_signal(signal.SIGINT)
            out, said = process.communicate(timeout=30)
    assert (process.returncode, out, said.strip()) == (130, "", "interrupted")
    assert stage.watch("hanging")[0]["look"] == 1


def test_wrong_usage_is_refused_before_anybody_is_asked(stage: Stage) -> None:
    assert "no route" in branchline(
        "monitor", *("../x", "--url", NOBODY, "--target", str(stage.rows)), home=stage.home.folder, expect=1
    )
    for words, said in (
        (("--every", "soon"), "no interval"),
        (("--warning", "6"), "0 < warning ≤ critical"),
        (("--guardrail", str(stage.rows)), "the same rows were given twice"),
        (("--url", "ftp://x"), "expected http://HOST:PORT"),
        (("--url", "http://user:secret@host"), "without user or password"),
    ):
        done = CliRunner().invoke(monitor, [*stage.words("quiet"), *words])
        assert (done.exit_code, said in " ".join(done.stderr.split())) == (2, True), done.stderr


def test_a_look_is_printed_as_a_table(stage: Stage) -> None:
    stage.route("printed", [RIGHT])
    done = CliRunner().invoke(monitor, stage.words("printed")[:-1])
    assert done.exit_code == 0
    title, header, row = done.stdout.splitlines()
    assert title == "printed@1, look 1 of 24: fine"
    assert header.split()[:5] == ["set", "metric", "items", "reference", "live"]
    assert row.split()[:6] == ["rows", "contains", "40", "0.750", "0.750", "+0.0"]


def test_a_real_engine_answers_a_monitor_as_evaluate_heard_it(tmp_path: Path) -> None:
    """Evidence of `evaluate`, answers of the embedded backend: not one of 24 items may differ. Every other row wants
    how the adapter's own answer begins, so that both right and wrong ones occur.
    """
    loaded, lora = lora_model(make_trainable_base(tmp_path / "tiny"), effect=0.3)
    asked = [(f"say {n} and {n * n}", "never said") for n in range(24)]
    heard = Evaluator(lora, loaded.tokenizer, loaded.end_tokens, loaded.pad_token, "contains").score(
        encoded(loaded, asked)
    )
    wanted = [one.output.strip()[:3] if n % 2 else "never said" for n, one in enumerate(heard)]
    rows = tmp_path / "rows.jsonl"
    documents = [{"input": ask, "output": want or "-"} for (ask, _), want in zip(asked, wanted, strict=True)]
    rows.write_text("".join(json.dumps(one) + "\n" for one in documents), encoding="utf-8")
    folder, home, base = tmp_path / "colour", tmp_path / "home", str(tmp_path / "tiny")
    save_adapter(lora, folder, "tiny")
    words = (str(folder), "--base", base, "--eval", str(rows), "--metric", "contains", "--out", str(tmp_path / "out"))
    assert CliRunner().invoke(evaluate, [*words, "--home", str(home)]).exit_code == 0
    evidence = parse_evidence((tmp_path / "out" / "evidence.json").read_bytes())
    with contextlib.closing(Registry.open(Home.at(home).registry_url)) as registry:
        registry.create_route("colour")
        publish_folder(registry, Home.at(home).open_store(), "colour", folder, find_base(base), evidence=evidence)
        registry.promote("colour", 1, forced="a test")
    with serving(home, "--backend", "embedded", "--base", base) as gateway:
        where = ("--url", gateway.url, "--target", str(rows), "--home", str(home))
        done = CliRunner().invoke(monitor, ["colour", *where, "--once", "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["sets"][0]
    assert (found["drop"]["pairs"], found["drop"]["worse"], found["drop"]["better"]) == (24, 0, 0)
    assert 0.2 < found["live"] < 0.8


class _Mixed(BaseHTTPRequestHandler):
    """A gateway of which some requests fail, and some are answered by another version."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        text = body["messages"][-1]["content"]
        number = int(text.split()[-1])
        self.server.seen.append((self.headers["authorization"], body))  # type: ignore[attr-defined]
        model = "mixed@9.0000000000000000" if number in (2, 3) else self.server.model  # type: ignore[attr-defined]
        answer = {"model": model, "choices": [{"message": {"content": text}}]}
        self._send(503 if number < 2 else 200, {"choices": []} if number == 4 else answer)

    def _send(self, status: int, document: object) -> None:
        data = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


def test_failures_and_answers_of_another_version_are_counted_apart(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 of 40 requests fail and 2 are another's: 35 pairs are left, and 7.5 % failing is a warning of its own."""
    version = stage.route("mixed", [RIGHT])
    monkeypatch.setenv("BRANCHLINE_API_KEY", "key-of-a-test")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Mixed)
    server.model, server.seen = version.engine_name, []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        (look,) = stage.watch("mixed", "--concurrency", "3", url=f"http://127.0.0.1:{server.server_port}/v1/")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    found = look["sets"][0]
    assert found["errors"] == {"HTTP 503": 2, "no chat completion": 1}
    assert found["others"] == {"mixed@9.0000000000000000": 2}
    assert (found["drop"]["pairs"], found["drop"]["size"], found["severity"]) == (35, 0, None)
    assert (found["failing"], look["severity"]) == (True, "warning")
    key, body = server.seen[0]  # type: ignore[attr-defined]
    assert key == "Bearer key-of-a-test"
    assert (body["model"], body["temperature"], body["seed"], body["max_tokens"]) == ("mixed", 0, 0, 16)


# -- pure ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "size", "p", "expected"),
    [
        ("target", 0.10, 0.02, None),  # effect without significance
        ("target", 0.01, 1e-9, None),  # significance without effect
        ("target", 0.02, 0.01, "warning"),
        ("target", 0.05, 0.01, "critical"),
        ("guardrail", 0.02, 0.01, "critical"),  # what must not get worse at all
        ("guardrail", 0.01, 1e-9, None),
        ("target", -0.5, 1.0, None),
    ],
)
def test_an_alert_needs_an_effect_and_significance(kind: Any, size: float, p: float, expected: str | None) -> None:
    assert severity(kind, Drop(100, 10, 0, size, p), 0.01, Plan()) == expected


def test_only_items_with_both_scores_are_compared() -> None:
    expected = Expected("rows", "target", "0" * 64, "exact_match", {"a": 1.0, "b": 0.0, "c": 1.0})
    found = judge(expected, Measured({"a": 0.0, "b": 0.0, "z": 0.0}, {}, {}), 0.05, Plan())
    assert (found.drop.pairs, found.reference, found.live, found.drop.size) == (2, 0.5, 0.0, 0.5)
    empty = judge(expected, Measured({}, {}, {"HTTP 500": 3}), 0.05, Plan())
    assert (empty.severity, empty.failing, worst([empty])) == (None, True, "warning")
    assert worst([empty, replace(empty, severity="critical")]) == "critical"


@given(st.integers(1, 50), st.integers(1, 6), st.floats(0.001, 0.2))
def test_all_sets_at_all_looks_together_spend_alpha(looks: int, sets: int, alpha: float) -> None:
    plan = Plan(looks=looks, alpha=alpha)
    assert sum(sets * set_level(plan, look, sets) for look in range(1, looks + 1)) == pytest.approx(alpha, rel=1e-9)


def test_the_next_look_is_due_an_interval_after_the_last() -> None:
    assert seconds_until(None, 60, now=1000) == 0
    assert seconds_until(990, 60, now=1000) == 50
    assert seconds_until(900, 60, now=1000) == 0


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1.5m", 90), ("1h", 3600), ("2d", 172800)])
def test_intervals_are_read(text: str, seconds: float) -> None:
    assert parse_interval(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "-1h", "0s", "1h30m", "1 h"])
def test_what_is_no_interval_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no interval"):
        parse_interval(text)


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 2}', '{"schema": 1, "watches": {"x": {"looks": [{}]}}}'])
def test_a_broken_state_file_is_refused_and_not_taken_for_an_empty_one(tmp_path: Path, text: str) -> None:
    (tmp_path / "state.json").write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointInvalid, match="not what a monitor wrote"):
        StateFile(tmp_path / "state.json", "sql").read("x")


def test_two_monitors_of_one_plan_are_refused(tmp_path: Path) -> None:
    states = StateFile(tmp_path / "monitor" / "state.json", "sql")
    with states.locked(), pytest.raises(FolderOccupied, match="another process monitors sql"), states.locked():
        pass
