"""The HTTP surface over a real socket: answers, headers, refusals, and clients that go away."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest

from adapters.classifiers import promote_classifier
from router.auth import Gatekeeper
from router.decision_log import DecisionLog
from router.errors import EngineFailed
from tests.gateway_parts import DEADLINE, Served, Stock, make_stock

KEY = "k-0123456789abcdef"
MAX_BODY = 20_000
SQL = "select the name of users where age is over 30"
CHAT = "/v1/chat/completions"
Body = dict[str, Any]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"))


@pytest.fixture(scope="module")
def shared(stock: Stock, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    root = tmp_path_factory.mktemp("served")
    served = Served(
        stock.copy(root / "home"),
        stock.base,
        Gatekeeper.for_bind("127.0.0.1", None),
        live=[("sql", 1), ("regex", 1), ("regex", 2)],
        max_body_bytes=MAX_BODY,
        allow_unreleased=True,
        decision_log=DecisionLog(root / "decisions.jsonl"),
    )
    with served:
        promote_classifier(served.gateway.registry, 1)
        served.until(lambda: served.gateway.catalog.classifier is not None, "the classifier")
        yield served


@pytest.fixture
def served(shared: Served) -> Iterator[Served]:
    yield shared
    shared.obey()
    shared.until(lambda: shared.engine.running == 0, "an idle engine")


@pytest.fixture
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=served.url, timeout=DEADLINE) as connected:
        yield connected


def body(model: str = "auto", text: str = SQL, **more: Any) -> Body:
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


def events(response: httpx.Response) -> list[str]:
    """The data of each server-sent event."""
    return [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]


def require_error(response: httpx.Response, status: int, code: str | None) -> Body:
    """The error object of a response, which must have OpenAI's shape, the status, the code and a request id."""
    document: dict[str, Body] = response.json()
    assert set(document["error"]) == {"message", "type", "param", "code"}
    assert (response.status_code, document["error"]["code"]) == (status, code)
    assert response.headers["x-request-id"]
    return document["error"]


def metric(client: httpx.Client, line: str) -> float:
    found = [one for one in client.get("/metrics").text.splitlines() if one.startswith(line)]
    return sum(float(one.rpartition(" ")[2]) for one in found)


# -- answers and their headers ---------------------------------------------------------------------------------------


def test_a_whole_answer_comes_as_one_document_from_the_version_that_the_classifier_chose(
    client: httpx.Client, served: Served
) -> None:
    response = client.post(CHAT, json=body())
    name = served.gateway.engine_name("sql", 1)
    document = response.json()
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert document["model"] == name
    assert document["choices"][0]["message"]["content"] == f"[{name}] {SQL}"
    assert document["usage"]["completion_tokens"] == len(SQL.split()) + 1


def test_a_stream_comes_as_events_that_end_with_done(client: httpx.Client, served: Served) -> None:
    response = client.post(CHAT, json=body(stream=True))
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(response)
    assert last == "[DONE]"
    text = "".join(json.loads(chunk)["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == f"[{served.gateway.engine_name('sql', 1)}] {SQL}"


@pytest.mark.parametrize("stream", [False, True])
def test_the_headers_say_what_was_decided(client: httpx.Client, served: Served, stream: bool) -> None:
    headers = client.post(CHAT, json=body(stream=stream)).headers
    assert headers["x-branchline-route"] == "sql"
    assert headers["x-branchline-version"] == "1"
    assert headers["x-branchline-stage"] == "live"
    assert headers["x-branchline-reason"] == "classified"
    assert re.fullmatch(r"[01]\.\d{4}", headers["x-branchline-confidence"])
    assert headers["x-branchline-serial"] == str(served.gateway.catalog.snapshot.serial)
    assert float(headers["x-branchline-overhead-ms"]) >= 0


@pytest.mark.parametrize(
    ("model", "route", "version", "stage", "reason"),
    [
        ("tiny", None, None, "base", "base_requested"),
        ("regex", "regex", "2", "live", "pinned"),
        ("regex@1", "regex", "1", "pinned", "pinned"),
        ("sql@3", "sql", "3", "pinned", "pinned"),
    ],
)
def test_a_named_model_is_reported_as_what_it_is(
    client: httpx.Client, model: str, route: str | None, version: str | None, stage: str, reason: str
) -> None:
    headers = client.post(CHAT, json=body(model)).headers
    found = [headers.get(f"x-branchline-{name}") for name in ("route", "version", "stage", "reason", "confidence")]
    assert found == [route, version, stage, reason, None]


@pytest.mark.parametrize(
    ("prompt", "reason"), [(SQL, "classified"), ([SQL, "zzz"], "classified"), ([1, 2, 3], "not_text")]
)
def test_completions_are_classified_by_their_first_prompt(client: httpx.Client, prompt: object, reason: str) -> None:
    response = client.post("/v1/completions", json={"model": "auto", "prompt": prompt})
    assert (response.status_code, response.headers["x-branchline-reason"]) == (200, reason)
    assert response.json()["object"] == "text_completion"


def test_tokenize_is_routed_like_any_request(client: httpx.Client, served: Served) -> None:
    response = client.post("/tokenize", json=body("auto"))
    assert (response.status_code, response.headers["x-branchline-route"]) == (200, "sql")
    assert response.headers["x-branchline-version"] == "1"
    document = response.json()
    assert document["count"] == len(document["tokens"]) == len(SQL.split())
    assert set(document) == {"count", "max_model_len", "tokens", "token_strs"}
    assert client.post("/tokenize", json={"model": "tiny", "prompt": SQL}).json()["tokens"] == document["tokens"]
    require_error(client.post("/tokenize", json=body("nobody")), 404, "model_not_found")
    require_error(client.post("/tokenize", json=body("tiny", return_token_strs=True)), 400, "unsupported_parameter")


def test_an_endpoint_that_the_engine_does_not_serve_is_refused_after_the_decision(client: httpx.Client) -> None:
    require_error(client.post("/v1/responses", json={"model": "auto", "input": SQL}), 400, "unsupported_endpoint")
    require_error(client.post("/v1/responses", json={"model": "gpt-9", "input": SQL}), 404, "model_not_found")
    response = client.post("/v1/responses", json={"model": "auto", "input": SQL, "previous_response_id": "resp_1"})
    require_error(response, 400, "unsupported_parameter")


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/health", "/nowhere"])
def test_a_request_id_of_the_client_comes_back(client: httpx.Client, path: str) -> None:
    send = client.post if path == CHAT else client.get
    given = {"x-request-id": "trace-1.a_b"}
    response = send(path, headers=given) if path != CHAT else client.post(path, json=body(), headers=given)
    assert response.headers.get_list("x-request-id") == ["trace-1.a_b"]


@pytest.mark.parametrize("given", ["", "has space", "a" * 129, "naïve", 'quote"'])
def test_an_unusable_request_id_is_replaced(client: httpx.Client, given: str) -> None:
    response = client.get("/health", headers=[(b"x-request-id", given.encode("latin-1"))])
    assert re.fullmatch(r"req-[0-9a-f]{32}", response.headers["x-request-id"])


def test_two_requests_have_two_ids(client: httpx.Client) -> None:
    assert len({client.get("/health").headers["x-request-id"] for _ in range(5)}) == 5


def test_the_request_id_is_the_answers_id(client: httpx.Client) -> None:
    response = client.post(CHAT, json=body(), headers={"x-request-id": "r-7"})
    assert response.json()["id"] == "chatcmpl-r-7"


# -- the other pages -------------------------------------------------------------------------------------------------


def test_models_lists_the_base_alone_without_parent_then_auto_then_live_routes(client: httpx.Client) -> None:
    document = client.get("/v1/models").json()
    assert [card["id"] for card in document["data"]] == ["tiny", "auto", "regex", "sql"]
    assert [card.get("parent") for card in document["data"]] == [None, "tiny", "tiny", "tiny"]
    assert "parent" not in document["data"][0]
    assert {card["object"] for card in document["data"]} == {"model"}
    assert document["object"] == "list"
    assert "/" not in json.dumps(document)


def test_a_disabled_route_leaves_the_list_and_answers_with_the_base_or_an_error_as_its_policy_says(
    client: httpx.Client, served: Served
) -> None:
    registry = served.gateway.registry
    registry.disable("regex")
    registry.change_route("regex", policy={"on_disabled": "error"})
    settle(served)
    try:
        assert "regex" not in [card["id"] for card in client.get("/v1/models").json()["data"]]
        require_error(client.post(CHAT, json=body("regex")), 409, "route_disabled")
        require_error(client.post(CHAT, json=body("regex@2")), 409, "route_disabled")
        registry.change_route("regex", policy={"on_disabled": None})
        settle(served)
        assert client.post(CHAT, json=body("regex")).headers["x-branchline-reason"] == "route_disabled"
        require_error(client.post(CHAT, json=body("regex@2")), 409, "route_disabled")
    finally:
        registry.enable("regex")
        settle(served)


def test_health_and_ready_say_how_it_stands(client: httpx.Client, served: Served) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    engines = {"up": 1}
    expected = {"ready": True, "warming": [], "problems": {"routes": {}, "classifier": None}, "engines": engines}
    assert client.get("/ready").json() == {**expected, "registry_stale_seconds": 0.0}
    served.engine.script.faults["sql@2"] = "too large for this engine"
    served.gateway.promote("sql", 2)
    try:
        served.until(lambda: "sql" in served.gateway.catalog.problems, "the problem")
        ready = client.get("/ready")
        assert (ready.status_code, ready.json()["problems"]["routes"]) == (200, {"sql": "too large for this engine"})
        assert client.post(CHAT, json=body("sql")).headers["x-branchline-version"] == "1"
    finally:
        served.gateway.registry.rollback("sql")
        settle(served)


def settle(served: Served) -> None:
    serial = served.gateway.registry.serial()
    served.until(lambda: served.gateway.catalog.snapshot.serial >= serial, f"serial {serial}")


def test_an_engine_that_cannot_be_drained_says_so(client: httpx.Client) -> None:
    listed = client.get("/admin/v1/engines").json()["engines"]
    assert [(one["name"], one["state"], one["resident"] > 0) for one in listed] == [("echo", "up", True)]
    for action in ("drain", "resume"):
        error = require_error(client.post(f"/admin/v1/engines/echo/{action}"), 400, None)
        assert "cannot be drained" in error["message"]
    require_error(client.post("/admin/v1/engines/http%3A%2F%2Fhost%3A1%2F/drain"), 404, "not_found")


# -- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/chat/completions/x", "/docs", "/%00", "/v1/models/"])
def test_an_unknown_path_is_an_openai_error(client: httpx.Client, path: str) -> None:
    require_error(client.get(path), 404, "unknown_url")


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("DELETE", "/v1/models"), ("PUT", "/v1/completions")])
def test_a_wrong_method_is_an_openai_error_that_names_the_right_one(
    client: httpx.Client, method: str, path: str
) -> None:
    response = client.request(method, path)
    require_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] in {"POST", "GET"}


@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded", "application/jsonx"])
def test_a_body_that_is_not_declared_json_is_refused(client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    error = require_error(client.post(CHAT, content=json.dumps(body()), headers=headers), 400, None)
    assert "expected application/json" in error["message"]


def test_json_with_a_charset_is_json(client: httpx.Client) -> None:
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert client.post(CHAT, content=json.dumps(body()), headers=headers).status_code == 200


@pytest.mark.parametrize("declared", [True, False])
def test_a_body_over_the_limit_is_refused_with_and_without_its_length(client: httpx.Client, declared: bool) -> None:
    raw = json.dumps(body(text="x" * MAX_BODY)).encode()
    pieces = iter([raw[:1000], raw[1000:]])
    response = client.post(CHAT, content=raw if declared else pieces, headers={"content-type": "application/json"})
    require_error(response, 413, "request_too_large")


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        ({"model": "gpt-9"}, 404, "model_not_found"),
        ({"model": "sql@1.ffffffffffffffff"}, 404, "model_not_found"),
        ({"model": "auto", "priority": 1}, 400, "unsupported_parameter"),
        ({"model": "auto", "temperature": 9}, 400, None),
        ({"model": 1}, 400, None),
        ({"model": "auto", "messages": 1}, 400, None),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_cannot_be_served_is_refused_before_a_byte_of_a_stream(
    client: httpx.Client, sent: Body, status: int, code: str | None, stream: bool
) -> None:
    require_error(client.post(CHAT, json=body(stream=stream) | sent), status, code)


@pytest.mark.parametrize("raw", [b"", b"{", b"[" * 100_000, b'{"a":NaN}', b"\xff", b'{"model":"\\ud800"}'])
def test_a_body_that_is_no_json_object_is_refused(client: httpx.Client, raw: bytes) -> None:
    raw = raw[:MAX_BODY]
    require_error(client.post(CHAT, content=raw, headers={"content-type": "application/json"}), 400, None)


def test_a_text_with_half_a_character_is_refused_and_not_an_internal_error(client: httpx.Client) -> None:
    raw = json.dumps(body("tiny", "MARK")).replace("MARK", "\\ud83d").encode()
    require_error(client.post(CHAT, content=raw, headers={"content-type": "application/json"}), 400, None)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"host": "evil.example"}, "foreign_host"),
        ({"origin": "http://evil.example"}, "foreign_origin"),
        ({"origin": "http://[::1"}, "foreign_origin"),
    ],
)
def test_a_web_page_cannot_reach_a_loopback_server(client: httpx.Client, headers: dict[str, str], code: str) -> None:
    require_error(client.get("/health", headers=headers), 403, code)
    require_error(client.post(CHAT, json=body(), headers=headers), 403, code)


def test_a_header_cannot_be_smuggled_into_the_answer_by_a_model_name(client: httpx.Client) -> None:
    response = client.post(CHAT, json=body("sql\r\nx-evil: 1"))
    require_error(response, 404, "model_not_found")
    assert "x-evil" not in response.headers


def test_with_a_key_everything_but_health_and_ready_asks_for_it(
    stock: Stock, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = stock.copy(tmp_path_factory.mktemp("keyed") / "home")
    with (
        Served(home, stock.base, Gatekeeper.for_bind("127.0.0.1", KEY)) as keyed,
        httpx.Client(base_url=keyed.url, timeout=DEADLINE) as client,
    ):
        for path in ("/v1/models", "/metrics", "/nowhere", "/openapi.json", "/admin/v1/engines"):
            response = client.get(path)
            error = require_error(response, 401, "invalid_api_key")
            assert response.headers["www-authenticate"] == "Bearer"
            assert KEY not in error["message"]
        for wrong in ("Bearer nope", f"Basic {KEY}", "Bearer"):
            response = client.post(CHAT, json=body("tiny"), headers={"authorization": wrong})
            require_error(response, 401, "invalid_api_key")
        assert [client.get(path).status_code for path in ("/health", "/ready")] == [200, 200]
        allowed = client.post(CHAT, json=body("tiny"), headers={"authorization": f"Bearer {KEY}"})
        assert allowed.status_code == 200


def test_a_live_version_that_the_engine_lost_is_answered_by_the_base_which_says_so_and_is_brought_in_again(
    client: httpx.Client, served: Served
) -> None:
    name = served.gateway.engine_name("sql", 1)
    served.call(lambda: served.engine.lose(name))
    headers = client.post(CHAT, json=body("sql")).headers
    assert (headers["x-branchline-stage"], headers["x-branchline-reason"]) == ("base", "adapter_unavailable")
    assert (headers["x-branchline-route"], headers.get("x-branchline-version")) == ("sql", None)
    served.until(lambda: served.engine.is_resident(name), "the version again")
    assert client.post(CHAT, json=body("sql")).json()["model"] == name


# -- engines that fail, clients that go away ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("breaks_with", "message"),
    [
        (EngineFailed("the engine died"), "the engine died"),
        (StopAsyncIteration(), "the engine's answer broke off"),
        (RuntimeError("secret of the engine"), "internal error"),
    ],
)
def test_a_stream_cut_short_ends_with_an_error_event_that_carries_the_request_id(
    client: httpx.Client, served: Served, breaks_with: Exception, message: str
) -> None:
    failed = metric(client, 'branchline_requests_total{outcome="failed"')
    served.engine.break_at, served.engine.breaks_with = 3, breaks_with
    response = client.post(CHAT, json=body(stream=True), headers={"x-request-id": "r-9"})
    *chunks, last = [json.loads(event) for event in events(response)]
    assert len(chunks) == 3
    assert set(last["error"]) == {"message", "type", "param", "code"}
    assert (last["error"]["message"], last["error"]["type"]) == (message, "server_error")
    assert last["request_id"] == "r-9"
    assert metric(client, 'branchline_requests_total{outcome="failed"') == failed + 1


@pytest.mark.parametrize(
    ("breaks_with", "status", "code"),
    [(EngineFailed("the engine died"), 502, "engine_failed"), (RuntimeError("secret"), 500, "internal_error")],
)
def test_a_whole_answer_that_fails_is_an_openai_error(
    client: httpx.Client, served: Served, breaks_with: Exception, status: int, code: str
) -> None:
    served.engine.break_at, served.engine.breaks_with = 0, breaks_with
    error = require_error(client.post(CHAT, json=body()), status, code)
    assert "secret" not in error["message"]


@pytest.mark.parametrize("stream", [True, False])
def test_the_engine_stops_working_for_a_client_that_went_away(
    client: httpx.Client, served: Served, stream: bool
) -> None:
    cancelled = metric(client, 'branchline_requests_total{outcome="cancelled"')
    served.engine.pause_before = 2 if stream else 0
    with closing(raw_request(served, json.dumps(body(stream=stream)).encode())) as connection:
        if stream:
            assert connection.recv(10_000).startswith(b"HTTP/1.1 200")
        served.until(lambda: served.engine.running == 1, "a running call")
    served.until(lambda: served.engine.running == 0, "an engine that stopped")
    assert metric(client, 'branchline_requests_total{outcome="cancelled"') == cancelled + 1


@pytest.mark.parametrize("opens_late", [False, True])
@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_before_the_first_byte_stops_the_engine_also_where_that_opens_all_the_same(
    client: httpx.Client, served: Served, stream: bool, opens_late: bool
) -> None:
    left = metric(client, 'branchline_errors_total{code="client_closed_request"')
    served.engine.hold_open, served.engine.opens_late = True, opens_late
    with closing(raw_request(served, json.dumps(body(stream=stream)).encode())):
        served.until(lambda: served.engine.opening == 1, "a call that waits for its first byte")
    served.until(lambda: served.engine.opening == 0, "a wait that ended")
    served.until(
        lambda: metric(client, 'branchline_errors_total{code="client_closed_request"') == left + 1, "the refusal"
    )
    assert served.engine.running == 0


def test_a_client_that_leaves_while_it_sends_is_no_error_of_ours(
    served: Served, client: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    before = metric(client, 'branchline_errors_total{code="client_closed_request"')
    with closing(raw_request(served, b'{"model":', length=1000)):
        pass
    served.until(lambda: metric(client, 'branchline_errors_total{code="client_closed_request"') > before, "the refusal")
    assert [record.message for record in caplog.records if record.levelno >= logging.ERROR] == []


def raw_request(served: Served, content: bytes, *, length: int | None = None) -> socket.socket:
    """A connection on which a chat request was sent, its declared length `length`."""
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=DEADLINE)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    connection.sendall(f"{head}content-length: {len(content) if length is None else length}\r\n\r\n".encode() + content)
    return connection


def test_only_a_few_requests_at_a_time_may_ask_for_versions_never_live(client: httpx.Client, served: Served) -> None:
    served.engine.pause_before = 2
    held = [raw_request(served, json.dumps(body("sql@3", stream=True)).encode()) for _ in range(2)]
    try:
        served.until(lambda: served.engine.running == 2, "two running calls")
        response = client.post(CHAT, json=body("sql@4"))
        require_error(response, 429, "engine_overloaded")
        assert response.headers["retry-after"] == "1"
        assert raw_ok(client.post(CHAT, json=body("sql@1"), headers={"connection": "close"}), served)
    finally:
        for connection in held:
            connection.close()
    served.until(lambda: served.engine.running == 0, "an idle engine")
    served.obey()
    assert client.post(CHAT, json=body("sql@4")).status_code == 200


def raw_ok(response: httpx.Response, served: Served) -> bool:
    return response.status_code == 200 and response.json()["model"] == served.gateway.engine_name("sql", 1)


def test_requests_that_wait_for_an_unreleased_version_to_load_count_for_its_cap(
    client: httpx.Client, served: Served
) -> None:
    served.engine.script.hold("regex@4")
    waiting = [raw_request(served, json.dumps(body("regex@4")).encode()) for _ in range(2)]
    try:
        served.until(lambda: served.gateway.dispatcher.unreleased == 2, "two that wait")
        require_error(client.post(CHAT, json=body("regex@4")), 429, "engine_overloaded")
    finally:
        served.call(lambda: served.engine.script.release("regex@4"))
        assert all(connection.recv(100).startswith(b"HTTP/1.1 200") for connection in waiting)
        for connection in waiting:
            connection.close()
    served.until(lambda: served.gateway.dispatcher.unreleased == 0, "nobody asks any more")


# -- what is written down --------------------------------------------------------------------------------------------


def test_no_prompt_and_no_answer_is_in_metrics_or_logs(
    client: httpx.Client, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    marker = "xylophone-4711"
    for stream in (False, True):
        assert marker in client.post(CHAT, json=body("sql", f"{SQL} {marker}", stream=stream)).text
        require_error(client.post(CHAT, json=body("sql", marker, stream=stream, temperature=9)), 400, None)
        client.post(CHAT, content=f'{{"model": "auto", {marker}', headers={"content-type": "application/json"})
        client.post(CHAT, json=body(f"sql@{marker}"))
    served.engine.break_at, served.engine.breaks_with = 2, RuntimeError("engine trouble")
    client.post(CHAT, json=body("sql", marker, stream=True))
    log = (served.gateway.home.folder.parent / "decisions.jsonl").read_text(encoding="utf-8")
    assert log
    assert marker not in log + client.get("/metrics").text
    ours = [record for record in caplog.records if not record.name.startswith(("httpx", "httpcore"))]
    assert "engine trouble" in caplog.text
    assert marker not in "".join(f"{record.getMessage()}{record.exc_text}" for record in ours)
