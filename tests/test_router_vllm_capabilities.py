"""What an engine can do is asked of it, and said in words an operator can act on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest

from router.backends.vllm.capabilities import Capabilities, examine_engine, find_capabilities, findings
from router.errors import EngineFailed, EngineUnavailable
from tests.vllm_engine import free_port

STEP = {"token": "token_id:7", "logprob": -0.5, "top_logprobs": [{"token": "token_id:7", "logprob": -0.5}]}
LISTED = {"tokens": ["token_id:7"], "token_logprobs": [-0.5], "top_logprobs": [{"token_id:7": -0.5}]}
FACTS = {
    "branchline": "0.2.0",
    "base_fingerprint": "f" * 64,
    "store": "local",
    "resolves": True,
    "max_loras": 4,
    "max_lora_rank": 16,
    "max_cpu_loras": 64,
}
OPEN: dict[str, tuple[int, object]] = {
    "/v1/models": (200, {"data": [{"id": "base", "max_model_len": 1024}, {"id": "sql", "parent": "base"}]}),
    "/version": (200, {"version": "0.32.0"}),
    "/branchline": (200, FACTS),
    "/v1/completions": (200, {"choices": [{"logprobs": LISTED}]}),
    "/v1/chat/completions": (200, {"choices": [{"logprobs": {"content": [STEP]}}]}),
    "/tokenize": (200, {"tokens": [1]}),
    "/v1/responses": (400, {}),
    "/metrics": (200, "vllm:num_requests_running 0"),
}


@dataclass
class Engine:
    """What each path answers with the key, and without; 404 and 401 for the rest. Keeps what it was asked."""

    answers: Mapping[str, tuple[int, object]]
    keyless: Mapping[str, tuple[int, object]] = field(default_factory=dict)
    asked: list[tuple[str, Mapping[str, object] | None]] = field(default_factory=list)

    async def send(
        self, method: str, path: str, body: Mapping[str, object] | None, with_key: bool
    ) -> tuple[int, bytes]:
        self.asked.append((path, body))
        status, answer = self.answers.get(path, (404, {})) if with_key else self.keyless.get(path, (401, {}))
        return status, answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()

    def find(self, base_id: str | None = "base") -> Capabilities:
        return asyncio.run(find_capabilities(self.send, base_id=base_id))

    def levels(self) -> dict[str, tuple[str, str]]:
        return {what.removeprefix("engine "): (level, found) for what, level, found in findings(self.find())}


def test_a_guarded_engine_with_everything_is_all_right() -> None:
    levels = Engine(OPEN).levels()
    assert {level for level, _ in levels.values()} == {"ok"}
    assert "max_loras 4, max_lora_rank 16, max_cpu_loras 64" in levels["adapters"][1]


def test_looking_changes_nothing() -> None:
    engine = Engine(OPEN)
    engine.find()
    assert [body for path, body in engine.asked if path == "/v1/load_lora_adapter" and body] == []
    assert {body.get("max_tokens", 1) for _, body in engine.asked if body} == {1}


def test_the_base_is_the_first_model_without_a_parent() -> None:
    found = Engine(OPEN).find(None)
    assert (found.base_id, found.served, found.max_model_len) == ("base", ("base",), 1024)


def test_without_the_plugin_the_base_is_unverified_and_adapters_come_by_the_endpoint() -> None:
    levels = Engine(OPEN | {"/branchline": (404, {}), "/v1/load_lora_adapter": (400, {})}).levels()
    assert levels["base"] == ("note", "base: base unverified, this engine does not say its fingerprint")
    assert levels["adapters"][0] == levels["guard"][0] == "note"


def test_an_engine_without_a_way_in_is_a_problem() -> None:
    for facts in ((404, {}), (200, FACTS | {"resolves": False})):
        assert Engine(OPEN | {"/branchline": facts}).levels()["adapters"][0] == "problem"


def test_what_answers_without_a_key_is_a_problem_and_named() -> None:
    level, found = Engine(OPEN, {"/tokenize": (400, {}), "/v1/load_lora_adapter": (422, {})}).levels()["guard"]
    assert level == "problem"
    assert "/v1/load_lora_adapter, /tokenize" in found


@pytest.mark.parametrize(
    ("path", "answer", "reason"),
    [
        ("/v1/chat/completions", (400, {}), "/v1/chat/completions: status 400"),
        ("/v1/completions", (200, {"choices": [{"logprobs": None}]}), "no usable log-probabilities"),
        ("/v1/completions", (200, "garbage"), "no usable log-probabilities"),
    ],
)
def test_where_nothing_can_be_proved_it_says_why(path: str, answer: tuple[int, object], reason: str) -> None:
    level, found = Engine(OPEN | {path: answer}).levels()["proof"]
    assert level == "problem"
    assert reason in found


def test_another_vllm_than_the_tested_one_is_noted() -> None:
    assert Engine(OPEN | {"/version": (200, {"version": "0.40.1"})}).levels()["vllm"][0] == "note"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, {}), "refuses the key"),
        ((200, "<html>"), "no vLLM"),
        ((200, {"data": []}), "serves no model"),
        ((200, {"data": [{"id": "other"}]}), "serves other, not base"),
    ],
)
def test_what_is_not_the_engine_expected_is_said_in_one_line(answer: tuple[int, object], message: str) -> None:
    with pytest.raises(EngineFailed, match=message):
        Engine(OPEN | {"/v1/models": answer}).find()


def test_an_engine_that_is_down_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(EngineUnavailable, match=url):
        examine_engine(url, "key", base_id=None, timeout_seconds=5)
