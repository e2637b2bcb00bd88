"""POST /v1/feedback over a real socket: what is proposed waits, what is wrong is refused, and serving never notices."""

from __future__ import annotations

import json
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from adapters import cli_corrections
from adapters import feedback as queue
from adapters.classifiers import promote_classifier
from adapters.cli_route import route as route_group
from adapters.convergence import wait_exemplars
from adapters.corrections import correct
from adapters.decisions import day_files, read_decisions
from adapters.errors import BadInput
from adapters.examples import add_examples
from adapters.exemplars import exemplars_of
from adapters.feedback import Choice, Waiting, queue_feedback, reject_feedback, waiting_feedback
from adapters.home import Home
from adapters.registry import Registry
from adapters.rows import LabelledText
from router.auth import Gatekeeper
from router.classifier_cli.fit import registry_rows
from router.decision_log import DecisionLog
from router.errors import ConfigInvalid, InvalidRequest
from router.http import feedback as module
from router.http.feedback import MAX_BODY_BYTES, MAX_TEXT_CHARACTERS, parse_proposal
from router.settings import read_settings
from tests.gateway_parts import DEADLINE, Served, Stock, make_stock
from tests.gateway_process import serving

KEY = "k-0123456789abcdef"
SQL = "select the name of users where age is over 30"
FEEDBACK = "/v1/feedback"


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=1)


@contextmanager
def gateway(stock: Stock, root: Path, *, text: bool) -> Iterator[Served]:
    log = DecisionLog(root / "decisions.jsonl", text=text)
    gatekeeper = Gatekeeper.for_bind("127.0.0.1", KEY)
    with Served(stock.copy(root / "home"), stock.base, gatekeeper, live=[("sql", 1)], decision_log=log) as served:
        promote_classifier(served.gateway.registry, 1)
        served.until(lambda: served.gateway.catalog.classifier is not None, "the classifier")
        yield served


@pytest.fixture(scope="module")
def shared(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with gateway(stock, tmp_path_factory.mktemp("served"), text=True) as served:
        yield served


@pytest.fixture
def served(shared: Served) -> Iterator[Served]:
    yield shared
    reject_feedback(shared.gateway.registry, Choice())


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with connected(served) as client:
        yield client


def connected(served: Served) -> httpx.Client:
    return httpx.Client(base_url=served.url, timeout=DEADLINE, headers={"authorization": f"Bearer {KEY}"})


def waiting(served: Served) -> list[Waiting]:
    return waiting_feedback(served.gateway.registry)


def ask(client: httpx.Client, text: str = SQL, model: str = "auto") -> httpx.Response:
    response = client.post(
        "/v1/chat/completions", json={"model": model, "messages": [{"role": "user", "content": text}]}
    )
    assert response.status_code == 200
    return response


def require_error(response: httpx.Response, status: int, code: str | None) -> dict[str, Any]:
    document: dict[str, dict[str, Any]] = response.json()
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert (response.status_code, document["error"]["code"]) == (status, code)
    assert response.headers["x-request-id"]
    return document["error"]


# -- what is proposed waits --------------------------------------------------------------------------------------------


def test_feedback_waits_and_changes_no_decision(client: httpx.Client, served: Served) -> None:
    serial = served.gateway.registry.serial()
    response = client.post(FEEDBACK, json={"route": "base", "text": SQL, "user": "ann"})
    assert (response.status_code, response.json()) == (202, {"object": "feedback", "status": "queued"})
    assert [(one.label, one.text, one.source) for one in waiting(served)] == [("base", SQL, "feedback:ann")]
    assert exemplars_of(served.gateway.registry).rows == ()
    assert served.gateway.registry.serial() == serial
    assert ask(client).headers["x-branchline-route"] == "sql"


def test_the_same_feedback_again_looks_the_same_and_is_counted(client: httpx.Client, served: Served) -> None:
    answers = [client.post(FEEDBACK, json={"route": "regex", "text": "x"}) for _ in range(3)]
    assert {(one.status_code, one.text) for one in answers} == {(202, answers[0].text)}
    assert [(one.times, one.source) for one in waiting(served)] == [(3, "feedback:client")]


def test_a_text_is_taken_from_the_decision_log_by_its_requests_id(client: httpx.Client, served: Served) -> None:
    request_id = ask(client, "select the größe of users").headers["x-request-id"]
    assert client.post(FEEDBACK, json={"route": "regex", "request_id": request_id}).status_code == 202
    assert [(one.label, one.text) for one in waiting(served)] == [("regex", "select the größe of users")]
    require_error(client.post(FEEDBACK, json={"route": "regex", "request_id": "req-none"}), 404, "not_found")


def test_the_log_keeps_the_text_of_what_was_classified_and_of_nothing_else(
    client: httpx.Client, served: Served
) -> None:
    first, second = (ask(client, "one two three", model).headers["x-request-id"] for model in ("auto", "sql"))
    log = read_decisions(served.gateway.home.folder.parent / "decisions.jsonl")
    texts = {line["request_id"]: line["text"] for line in log}
    assert (texts[first], texts[second]) == ("one two three", None)
    require_error(client.post(FEEDBACK, json={"route": "regex", "request_id": second}), 404, "not_found")


def test_a_gateway_that_keeps_no_texts_says_so(stock: Stock, tmp_path: Path) -> None:
    with gateway(stock, tmp_path, text=False) as served, connected(served) as client:
        request_id = ask(client).headers["x-request-id"]
        error = require_error(
            client.post(FEEDBACK, json={"route": "sql", "request_id": request_id}), 400, "no_text_kept"
        )
        assert error["param"] == "request_id"
        assert SQL.encode() not in (tmp_path / "decisions.jsonl").read_bytes()
        assert client.post(FEEDBACK, json={"route": "regex", "text": SQL}).status_code == 202


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b'{"route": "sql", "route": "regex", "text": "x"}', None),
        (b'{"route": "sql", "text": "x", "weight": NaN}', None),
        (b'{"route": "sql", "text": "\xff"}', None),
        (b'{"route": "sql", "text": "\\ud800"}', None),
        (b'{"route": "sql", "text": "x"} {}', None),
        (b"[]", None),
        (b"", None),
        (b"[" * 100_000, None),
        (b'{"route": "sql", "text": "x", "label": "regex"}', "label"),
        (b'{"route": "sql"}', "text"),
        (b'{"route": "sql", "text": "x", "request_id": "r-1"}', "text"),
        (b'{"route": "sql", "text": 1}', "text"),
        (b'{"route": "sql", "text": ""}', "text"),
        (b'{"route": "sql", "text": " \\n\\t"}', "text"),
        (b'{"route": "sql", "text": "a\\u0000b"}', "text"),
        (b'{"route": "sql", "text": "' + b"x" * (MAX_TEXT_CHARACTERS + 1) + b'"}', "text"),
        (b'{"route": "sql", "request_id": "r 1"}', "request_id"),
        (b'{"route": "sql", "request_id": ""}', "request_id"),
        (b'{"route": "sql", "text": "x", "user": "a b"}', "user"),
        (b'{"route": "sql", "text": "x", "user": ["a"]}', "user"),
        (b'{"text": "x"}', "route"),
        (b'{"route": "auto", "text": "x"}', "route"),
        (b'{"route": "oos", "text": "x"}', "route"),
        (b'{"route": "../x", "text": "x"}', "route"),
        (b'{"route": null, "text": "x"}', "route"),
    ],
)
def test_a_body_that_is_not_feedback_is_refused(
    client: httpx.Client, served: Served, body: bytes, param: str | None
) -> None:
    response = client.post(FEEDBACK, content=body, headers={"content-type": "application/json"})
    assert require_error(response, 400, None)["param"] == param
    assert waiting(served) == []


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.text(), max_size=2)
KEYS = st.sampled_from(["route", "text", "request_id", "user", "other"])


@given(raw=st.binary(max_size=100) | st.dictionaries(KEYS, JSON).map(lambda body: json.dumps(body).encode()))
def test_whatever_comes_in_is_a_proposal_or_an_error_of_the_request(raw: bytes) -> None:
    try:
        proposal = parse_proposal(raw)
    except InvalidRequest:
        return
    assert (proposal.text is None) != (proposal.request_id is None)


def test_a_route_that_is_not_there_a_wrong_type_and_a_huge_body_are_refused(client: httpx.Client) -> None:
    require_error(client.post(FEEDBACK, json={"route": "nosql", "text": "x"}), 404, "not_found")
    require_error(client.post(FEEDBACK, content=b'{"route": "sql", "text": "x"}'), 400, None)
    huge = client.post(FEEDBACK, json={"route": "sql", "text": "x" * MAX_BODY_BYTES})
    require_error(huge, 413, "request_too_large")
    require_error(client.get(FEEDBACK), 405, "method_not_allowed")


def test_feedback_needs_the_key_and_no_foreign_page_gives_any(client: httpx.Client, served: Served) -> None:
    body = {"route": "sql", "text": "x"}
    require_error(client.post(FEEDBACK, json=body, headers={"authorization": "Bearer wrong"}), 401, "invalid_api_key")
    foreign = client.post(FEEDBACK, json=body, headers={"origin": "https://evil.example"})
    require_error(foreign, 403, "foreign_origin")
    assert waiting(served) == []


def test_a_full_queue_is_said_and_nothing_waiting_is_dropped(
    client: httpx.Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_WAITING", 3)
    answers = [client.post(FEEDBACK, json={"route": "sql", "text": f"text {number}"}) for number in range(5)]
    assert [one.status_code for one in answers] == [202, 202, 202, 429, 429]
    assert require_error(answers[3], 429, "queue_full")["type"] == "rate_limit_error"
    assert answers[3].headers["retry-after"]
    assert [one.text for one in waiting(served)] == ["text 0", "text 1", "text 2"]


# -- a registry that does not answer -----------------------------------------------------------------------------------


@contextmanager
def locked(served: Served) -> Iterator[None]:
    """Another process that writes to the registry and does not come to an end."""
    writer = sqlite3.connect(served.gateway.home.folder / "registry.db", isolation_level=None)
    writer.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        writer.execute("ROLLBACK")
        writer.close()


def test_a_locked_registry_refuses_feedback_and_disturbs_no_answer(
    client: httpx.Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", 20)
    with locked(served):
        error = require_error(client.post(FEEDBACK, json={"route": "sql", "text": "x"}), 503, "registry_unavailable")
        assert error["message"] == "the registry cannot be written now"  # the driver's own words may name hosts
        assert ask(client).headers["x-branchline-route"] == "sql"
    assert client.post(FEEDBACK, json={"route": "regex", "text": "x"}).status_code == 202


def test_a_flood_of_feedback_to_a_locked_registry_is_refused_and_answers_go_on(
    client: httpx.Client, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_TIMEOUT_MS", int(DEADLINE * 1000))
    monkeypatch.setattr(module, "MAX_PENDING", 3)
    answers: list[httpx.Response] = []
    refused = threading.Semaphore(0)

    def post(number: int) -> None:
        with connected(served) as own:
            answers.append(own.post(FEEDBACK, json={"route": "sql", "text": f"x {number}"}))
            refused.release()

    threads = [threading.Thread(target=post, args=(number,)) for number in range(8)]
    with locked(served):
        for thread in threads:
            thread.start()
        for _ in range(5):
            assert refused.acquire(timeout=DEADLINE)
        assert ask(client).headers["x-branchline-route"] == "sql"
    for thread in threads:
        thread.join(DEADLINE)
    for answer in answers[:5]:
        require_error(answer, 429, "feedback_overloaded")
    assert [answer.status_code for answer in answers[5:]] == [202, 202, 202]


def test_a_registry_that_is_gone_refuses_feedback_and_is_not_made_anew(stock: Stock, tmp_path: Path) -> None:
    with gateway(stock, tmp_path, text=False) as served, connected(served) as client:
        home = served.gateway.home.folder
        away = home.with_name("away")
        home.rename(away)
        require_error(client.post(FEEDBACK, json={"route": "sql", "text": "x"}), 503, "registry_unavailable")
        assert not home.exists()
        assert ask(client).headers["x-branchline-route"] == "sql"
        away.rename(home)
        assert client.post(FEEDBACK, json={"route": "regex", "text": "x"}).status_code == 202


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands wait until gateways follow, on a machine as busy as it may be."""
    monkeypatch.setattr(cli_corrections, "wait_exemplars", partial(wait_exemplars, timeout_seconds=DEADLINE))


# -- what is accepted acts ---------------------------------------------------------------------------------------------


def command(home: Path, *words: str) -> str:
    done = CliRunner().invoke(route_group, [*words, "--home", str(home)])
    assert done.exit_code == 0, done
    return done.stdout


@pytest.mark.usefixtures("patient")
def test_what_an_operator_accepts_acts_on_a_running_gateway_and_the_command_waits_for_it(
    stock: Stock, tmp_path: Path
) -> None:
    with gateway(stock, tmp_path, text=True) as served, connected(served) as client:
        before = ask(client)
        assert before.headers["x-branchline-route"] == "sql"
        assert (
            client.post(FEEDBACK, json={"route": "base", "request_id": before.headers["x-request-id"]}).status_code
            == 202
        )
        assert ask(client).headers["x-branchline-route"] == "sql"
        assert "in force on 1 of 1 gateways" in command(
            served.gateway.home.folder, "corrections", "accept", "--source", "feedback:client"
        )
        assert "x-branchline-route" not in ask(client).headers
        log = tmp_path / "decisions.jsonl"
        *_, wrong = (str(line["request_id"]) for line in read_decisions(log))
        said = command(served.gateway.home.folder, "correct", "sql", "--request-id", wrong, "--decision-log", str(log))
        assert "in force on 1 of 1 gateways" in said
        assert ask(client).headers["x-branchline-route"] == "sql"
        lines = list(read_decisions(log))
        digests = [line["exemplars_digest"] for line in lines]
        assert digests[0] is None
        assert len(set(digests)) == 3
        assert digests[-1] == exemplars_of(served.gateway.registry).digest
        assert {line["classifier_digest"] for line in lines} == {served.gateway.catalog.judge.classifier_digest}


def test_forgetting_a_route_blanks_the_running_gateways_decision_log_where_so_told(
    stock: Stock, tmp_path: Path
) -> None:
    with gateway(stock, tmp_path, text=True) as served, connected(served) as client:
        ask(client)
        ask(client, "hello")
        said = command(served.gateway.home.folder, "forget", "sql", "--decision-log", str(tmp_path / "decisions.jsonl"))
        assert said.endswith("1 texts blanked in the decision log\n")
        ask(client, "hello again")
        assert [line["text"] for line in read_decisions(tmp_path / "decisions.jsonl")] == ["", "hello", "hello again"]


def test_the_next_fit_learns_corrections_and_those_to_the_base_as_base_rows(stock: Stock, tmp_path: Path) -> None:
    registry = Registry.open(stock.copy(tmp_path / "home").registry_url)
    with pytest.raises(BadInput, match="no route has examples"):
        registry_rows(registry)
    add_examples(registry, "sql", ["count the users", "hello"], source="operator")
    correct(registry, "base", ["hello"])
    queue_feedback(registry, "regex", "never accepted", source="feedback:client")
    assert set(registry_rows(registry)) == {LabelledText("count the users", "sql"), LabelledText("hello", "base")}
    registry.close()


# -- the server as a process ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
def test_a_server_with_texts_takes_feedback_by_request_and_an_operator_brings_it_in(
    stock: Stock, tmp_path: Path
) -> None:
    home, log = stock.copy(tmp_path / "home"), tmp_path / "decisions.jsonl"
    registry = Registry.open(home.registry_url)
    promote_classifier(registry, 1)
    registry.close()
    flags = ("--decision-log", str(log), "--decision-log-text", "--decision-log-days", "3")
    with serving(home.folder, "--backend", "echo", "--base", "tiny", *flags) as process:
        process.wait_for("classified texts are kept for 3 days")
        body = {"model": "auto", "messages": [{"role": "user", "content": SQL}]}
        answer = httpx.post(f"{process.url}/v1/chat/completions", json=body, timeout=DEADLINE)
        assert answer.headers["x-branchline-reason"] == "no_live_version"  # of the route sql
        proposal = {"route": "regex", "request_id": answer.headers["x-request-id"]}
        assert httpx.post(f"{process.url}/v1/feedback", json=proposal, timeout=DEADLINE).status_code == 202
        said = command(home.folder, "corrections", "accept", "--all")
        assert re.fullmatch(r"1 accepted \(serial \d+\): in force on 1 of 1 gateways after \d+ ms\n", said)
        answer = httpx.post(f"{process.url}/v1/chat/completions", json=body, timeout=DEADLINE)
        assert answer.headers["x-branchline-route"] == "regex"
    (file,) = day_files(log).values()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ({"decision_log_text": True}, "--decision-log-text needs --decision-log"),
        ({"decision_log": Path("d.jsonl"), "decision_log_days": 3}, "--decision-log-days needs --decision-log-text"),
        (
            {"decision_log": Path("d.jsonl"), "decision_log_text": True, "decision_log_days": 0},
            "decision-log-days is 0, expected 1 to 3650",
        ),
    ],
)
def test_flags_of_the_log_that_would_have_no_effect_are_refused(flags: dict[str, Any], problem: str) -> None:
    engine = {"backend": "echo", "base": "tiny"}
    with pytest.raises(ConfigInvalid, match=problem):
        read_settings(Home.at("home"), {}, host="127.0.0.1", port=0, engine=engine, **flags)
