"""The guard before a bare ASGI app: exact pairs pass with the key, nothing else does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.engine.guard import FACTS, OPEN, Guard, Message, Receive, Send

KEY = "0123456789abcdef"
PASSED = sorted(OPEN - {FACTS})
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "get", "")


@dataclass
class Behind:
    """The app behind the guard, and what was sent to the client."""

    scopes: list[Message] = field(default_factory=list)
    sent: list[Message] = field(default_factory=list)

    async def app(self, scope: Message, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)

    def call(self, **scope: Any) -> Behind:
        async def receive() -> Message:
            raise AssertionError("the guard reads no body")

        async def send(message: Message) -> None:
            self.sent.append(message)

        asyncio.run(Guard(self.app)(scope, receive, send))
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.sent[1]["body"])
        return document


@pytest.fixture(autouse=True, scope="module")
def key() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_API_KEY", KEY)
        patch.delenv("BRANCHLINE_STORE", raising=False)
        yield


def http(method: str, path: str, *, authorization: str | None = f"Bearer {KEY}", **scope: Any) -> Behind:
    headers = [] if authorization is None else [(b"authorization", authorization.encode())]
    return Behind().call(type="http", method=method, path=path, **{"headers": headers, **scope})


@pytest.mark.parametrize(("method", "path"), PASSED)
def test_an_open_pair_passes_with_the_key_and_only_with_it(method: str, path: str) -> None:
    assert len(http(method, path).scopes) == 1
    refused = http(method, path, authorization=None)
    assert (refused.scopes, refused.status) == ([], 401)
    assert refused.body["error"]["code"] == "invalid_api_key"


@pytest.mark.parametrize(
    "authorization",
    [KEY, f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer  {KEY}", f"Bearer {KEY[:-1]}", "Bearer ", "Bearer", "", "\xe9"],
)
def test_anything_but_the_key_is_401(authorization: str) -> None:
    refused = http("GET", "/health", authorization=authorization)
    assert (refused.scopes, refused.status) == ([], 401)
    assert (b"www-authenticate", b"Bearer") in refused.sent[0]["headers"]


def test_two_authorization_headers_are_401() -> None:
    twice = [(b"authorization", f"Bearer {KEY}".encode())] * 2
    assert http("GET", "/health", headers=twice).status == 401


def test_the_scheme_is_read_in_any_case() -> None:
    assert len(http("GET", "/health", authorization=f"bearer {KEY}").scopes) == 1


WORDS = st.sampled_from(
    ["", "v1", "chat", "completions", "render", "models", "..", ".", "%2e", "health", "adapters", "é"]
)
PATHS = st.one_of(
    st.text(max_size=40),
    st.lists(WORDS, max_size=6).map(lambda words: "/" + "/".join(words)),
    st.tuples(st.sampled_from(PASSED), st.text(min_size=1, max_size=5)).map(lambda pair: pair[0][1] + pair[1]),
    st.sampled_from([path for _, path in PASSED]),
)


@given(method=st.sampled_from(METHODS), path=PATHS)
def test_nothing_but_the_table_passes(method: str, path: str) -> None:
    answer = http(method, path)
    if (method, path) in OPEN - {FACTS}:
        assert len(answer.scopes) == 1
    elif (method, path) != FACTS:
        assert (answer.scopes, answer.status) == ([], 404)
        assert answer.body["error"]["type"] == "invalid_request_error"


@given(method=st.sampled_from(METHODS), path=PATHS)
def test_nothing_at_all_passes_without_the_key(method: str, path: str) -> None:
    answer = http(method, path, authorization=None)
    assert (answer.scopes, answer.status) == ([], 401)


@pytest.mark.parametrize("sent", [b"/v1/%6dodels", b"/v1%2Fmodels", b"/v1/models?x", b"//v1/models", b""])
def test_a_path_that_only_decodes_to_an_open_one_is_closed(sent: bytes) -> None:
    assert http("GET", "/v1/models", raw_path=sent).status == 404
    assert len(http("GET", "/v1/models", raw_path=b"/v1/models").scopes) == 1


def test_behind_a_root_path_everything_is_closed() -> None:
    assert http("GET", "/v1/models", root_path="/v1").status == 404
    assert len(http("GET", "/v1/models", root_path="").scopes) == 1


@pytest.mark.parametrize("path", ["/v1/models", "/v1/realtime", "/"])
def test_a_websocket_is_refused_before_it_is_accepted(path: str) -> None:
    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    answer = Behind().call(type="websocket", path=path, headers=headers)
    assert answer.scopes == []
    assert [message["type"] for message in answer.sent] == ["websocket.close"]


def test_lifespan_passes_and_unknown_scopes_do_not() -> None:
    assert len(Behind().call(type="lifespan").scopes) == 1
    assert Behind().call(type="webtransport").scopes == []


def test_headers_that_name_an_adapter_or_a_session_do_not_reach_the_engine() -> None:
    headers = [
        (b"authorization", f"Bearer {KEY}".encode()),
        (b"X-Amzn-SageMaker-Adapter-Identifier", b"other"),
        (b"x-amzn-sagemaker-session-id", b"NEW_SESSION"),
        (b"accept", b"*/*"),
    ]
    (scope,) = http("POST", "/v1/chat/completions", headers=headers).scopes
    assert [name for name, _ in scope["headers"]] == [b"authorization", b"accept"]


def test_facts_come_from_the_guard_itself_and_are_null_where_the_app_has_none() -> None:
    answer = http(*FACTS)
    assert (answer.scopes, answer.status) == ([], 200)
    found = answer.body
    assert found["branchline"]
    assert len(found["started"]) == 16
    empty = ("vllm", "base", "base_fingerprint", "store", "max_loras", "max_lora_rank", "max_model_len", "dtype")
    assert {name: found[name] for name in empty} == dict.fromkeys(empty)
    assert (found["resolves"], found["copies"]) == (False, 0)


def test_each_process_has_a_start_of_its_own() -> None:
    assert http(*FACTS).body["started"] != http(*FACTS).body["started"]


@pytest.mark.parametrize("value", [None, ""])
def test_without_a_key_the_guard_is_not_built(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("VLLM_API_KEY")
    if value is not None:
        monkeypatch.setenv("VLLM_API_KEY", value)
    with pytest.raises(RuntimeError, match="set VLLM_API_KEY"):
        Guard(Behind().app)
