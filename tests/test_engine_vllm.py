"""The resolver and the guard inside a real vLLM: the right bytes or an error, and an engine that lives."""

from __future__ import annotations

import http.client
import json
import re
import secrets
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest

from tests.engine_store import DAMAGES, EngineStore, random_tensors
from tests.test_engine_routes import ALLOWED, CLOSED
from tests.vllm_engine import BASE_ID, VllmEngine, needs_vllm, vllm_engine

pytestmark = needs_vllm
QUESTION = "List the names of all customers"
SAME = 1e-3  # log-probabilities of one adapter on repeat differ by less, of two adapters by far more
MAX_RANK = 16


@dataclass(frozen=True)
class Running:
    """An engine that holds two adapters at a time, and the store behind it."""

    engine: VllmEngine
    stored: EngineStore

    def logprobs(self, model: str, tokens: int = 8) -> list[float]:
        """Log-probabilities of a greedy answer; no cache of prompts can hide which weights made them."""
        salt = secrets.token_hex(8)
        answer = self.engine.chat(model, QUESTION, logprobs=True, cache_salt=salt, max_tokens=tokens, ignore_eos=True)
        assert answer["model"] == model
        return [token["logprob"] for token in answer["choices"][0]["logprobs"]["content"]]

    def evict_all(self) -> None:
        """Use two other adapters, which is all that fits."""
        for seed in (101, 102):
            self.logprobs(self.stored.publish(seed))

    def status(self, model: str) -> int:
        body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 1}
        return self.engine.post("/v1/chat/completions", body)[0]

    def send(self, method: str, path: str, **headers: str) -> int:
        """The status for exactly this method and path, nothing normalised; with the key unless told."""
        given = {"authorization": f"Bearer {self.engine.key}", **headers}
        return request(self.engine, method, path, given)


def request(engine: VllmEngine, method: str, path: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(urlsplit(engine.url).netloc, timeout=60)
    try:
        connection.request(method, path, body=b"{}" if method == "POST" else None, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("engine")
    stored = EngineStore(folder / "store")
    words = ("--max-loras", "2", "--max-cpu-loras", "2", "--max-lora-rank", str(MAX_RANK))
    variables = {"BRANCHLINE_ENGINE_COPIES": str(folder / "copies")}
    with vllm_engine(folder / "log", *words, store=str(folder / "store"), variables=variables) as engine:
        yield Running(engine, stored)


@pytest.fixture(autouse=True)
def alive(running: Running) -> Iterator[None]:
    """After each test the engine still answers from the base and says that it is well."""
    yield
    assert running.engine.process.poll() is None
    assert running.engine.get("/health")[0] == 200
    assert len(running.logprobs(BASE_ID)) > 0


def routes_of(log: Path) -> set[str]:
    lines = log.read_text(errors="replace").splitlines()
    found = [match for line in lines if (match := re.search(r"Route: (\S+), (?:Methods: (.*)|Endpoint: .*)$", line))]
    return {f"{method} {found_[1]}" for found_ in found for method in (found_[2] or "websocket").split(", ")}


def test_each_route_of_this_engine_is_open_or_closed_on_purpose_and_needs_the_key(running: Running) -> None:
    routes = routes_of(running.engine.log)
    assert routes <= ALLOWED | CLOSED
    assert routes >= ALLOWED
    for route in sorted(routes):
        method, path = route.split(" ")
        assert running.send(method, path, authorization="") == 401, route
        expected = {200, 400, 422} if route in ALLOWED else {404}  # an empty body is not a request to vLLM
        assert running.send(method, path) in expected, route


@pytest.mark.parametrize(
    "path",
    [
        *("/v1/chat/completions/", "//v1/chat/completions", "/v1//chat/completions", "/v1/./chat/completions"),
        *("/v1/x/../chat/completions", "/v1/chat/%63ompletions", "/v1%2Fchat/completions", "/%2e/v1/chat/completions"),
        *("/v1/chat/completions;x", "/V1/chat/completions", "/v1/chat/completions/render", "/metrics/", "/"),
    ],
)
def test_a_path_written_another_way_is_closed(running: Running, path: str) -> None:
    for method in ("GET", "POST"):
        assert running.send(method, path) == 404
        assert running.send(method, path, authorization="") == 401


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE"])
def test_other_methods_are_closed_on_open_paths(running: Running, method: str) -> None:
    for path in {route.split(" ")[1] for route in ALLOWED}:
        assert running.send(method, path) == 404
        assert running.send(method, path, authorization="") == 401


def test_the_body_of_a_refused_request_is_not_read_as_the_next_one(running: Running) -> None:
    inner = f"GET /version HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {running.engine.key}\r\n\r\n".encode()
    connection = http.client.HTTPConnection(urlsplit(running.engine.url).netloc, timeout=60)
    statuses = []
    for path in ("/v1/load_lora_adapter", "/v1/models", "/v1/models"):
        connection.request("POST", path, body=inner * 1000, headers={"authorization": ""})
        answer = connection.getresponse()
        statuses.append((answer.status, json.loads(answer.read())["error"]["code"]))
    connection.close()
    assert statuses == [(401, "invalid_api_key")] * 3


@pytest.mark.parametrize("path", ["/v1/realtime", "/v1/chat/completions", "/"])
def test_a_websocket_is_refused(running: Running, path: str) -> None:
    upgrade = {"connection": "Upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
    assert running.send("GET", path, **upgrade, **{"sec-websocket-key": "x3JJHMbDL1EzLkh9GBhXDw=="}) in (403, 404)


def test_the_engine_says_what_it_is(running: Running) -> None:
    running.logprobs(running.stored.publish(1))
    status, text = running.engine.get("/branchline")
    facts = json.loads(text)
    assert status == 200
    assert facts["base_fingerprint"] == running.stored.base.fingerprint
    assert facts["copies"] >= 1
    assert facts["resolves"] is True
    expected = {"base": "base", "store": "local", "max_loras": 2, "max_cpu_loras": 2, "max_lora_rank": MAX_RANK}
    assert {name: facts[name] for name in expected} == expected
    assert (facts["max_model_len"], facts["dtype"]) == (1024, "float32")
    assert json.loads(running.engine.get("/branchline")[1])["started"] == facts["started"]


def test_a_header_cannot_choose_an_adapter(running: Running) -> None:
    name = running.stored.publish(1)
    running.logprobs(name)
    for path in ("/invocations", "/adapters"):
        assert running.send("POST", path, **{"x-amzn-sagemaker-adapter-identifier": name}) == 404


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_the_store_after_the_first_use_changes_no_answer_not_even_after_an_eviction(
    running: Running, damage: Callable[[Path, Path], None]
) -> None:
    seed = 10 + DAMAGES.index(damage)
    name, other = running.stored.publish(seed), running.stored.publish(20)
    before, of_other = running.logprobs(name), running.logprobs(other)
    assert before != pytest.approx(of_other, abs=SAME)
    damage(running.stored.folder(name), running.stored.folder(other))
    assert running.logprobs(name) == pytest.approx(before, abs=SAME)
    running.evict_all()
    assert running.logprobs(name) == pytest.approx(before, abs=SAME)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_before_the_first_use_is_404_until_it_is_published_again(
    running: Running, damage: Callable[[Path, Path], None]
) -> None:
    seed = 30 + DAMAGES.index(damage)
    name, other = running.stored.publish(seed), running.stored.publish(20)
    damage(running.stored.folder(name), running.stored.folder(other))
    assert running.status(name) == 404
    assert f"{name} not served" in running.engine.log.read_text(errors="replace")
    running.stored.publish(seed)
    assert running.logprobs(name) != pytest.approx(running.logprobs(other), abs=SAME)


@pytest.mark.parametrize(
    "name",
    [
        *("../x@1.0123456789abcdef", "sql@1.0123456789ABCDEF", "sql@1", "sql", "sql@1.0123456789abcdef"),
        *("a" * 10_000, "ſql@1.0123456789abcdef", "sql@1.0123456789abcdef/..", "\x00", "..", "/etc"),
    ],
    ids=lambda name: repr(name[:30]),
)
def test_a_name_that_is_not_one_of_ours_is_404(running: Running, name: str) -> None:
    assert running.status(name) == 404


def test_a_rank_over_the_engines_is_400_and_the_engine_goes_on(running: Running) -> None:
    assert running.status(running.stored.publish(40, rank=2 * MAX_RANK)) == 400


def test_an_adapter_of_another_base_is_404(running: Running) -> None:
    assert running.status(running.stored.publish(41, base_fingerprint="f" * 64)) == 404


def test_first_requests_at_the_same_time_load_once(running: Running) -> None:
    name = running.stored.publish(50)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(running.logprobs, [name] * 8))
    assert all(answer == pytest.approx(answers[0], abs=SAME) for answer in answers)
    assert running.engine.log.read_text(errors="replace").count(f"loaded LoRA adapter '{name}'") == 1


def test_who_shares_a_batch_changes_nobodys_answer(running: Running) -> None:
    models = [BASE_ID, running.stored.publish(51), running.stored.publish(52)]
    alone = {model: running.logprobs(model, 64) for model in models}
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda model: (model, running.logprobs(model, 64)), models * 4))
    for model, answer in together:
        assert answer == pytest.approx(alone[model], abs=SAME), model


def test_clients_that_leave_while_their_adapter_is_found_harm_nobody(running: Running) -> None:
    names = [running.stored.publish(60 + number) for number in range(3)]
    for name in names:
        leave_at_once(running.engine, name)
    first = {name: running.logprobs(name) for name in names}
    running.evict_all()
    for name in names:
        assert running.logprobs(name) == pytest.approx(first[name], abs=SAME)


def test_ranks_that_differ_by_module_are_scaled_each_by_its_own(running: Running) -> None:
    """As in PEFT: with `rank_pattern` a module's scale is alpha / its own rank, so rank 2 counts twice rank 4."""
    plain = random_tensors(running.stored.base, 70, 4)
    first = next(name for name in plain if ".layers.0." in name).partition(".lora_")[0]
    short_a, short_b = plain[f"{first}.lora_A.weight"][:2], plain[f"{first}.lora_B.weight"][:, :2]
    by_pattern = {**plain, f"{first}.lora_A.weight": short_a, f"{first}.lora_B.weight": short_b}
    padded_a, padded_b = np.zeros_like(plain[f"{first}.lora_A.weight"]), np.zeros_like(plain[f"{first}.lora_B.weight"])
    padded_a[:2], padded_b[:, :2] = short_a, 2 * short_b
    by_hand = {**plain, f"{first}.lora_A.weight": padded_a, f"{first}.lora_B.weight": padded_b}
    pattern = {"r": 4, "rank_pattern": {first.removeprefix("base_model.model."): 2}}
    found = running.logprobs(running.stored.publish_tensors(70, by_pattern, pattern))
    assert found == pytest.approx(running.logprobs(running.stored.publish_tensors(71, by_hand, {"r": 4})), abs=SAME)
    assert found != pytest.approx(running.logprobs(running.stored.publish_tensors(72, plain, {"r": 4})), abs=SAME)


def leave_at_once(engine: VllmEngine, model: str) -> None:
    """Send a whole request and close the connection without waiting for a byte of the answer."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": QUESTION}]}).encode()
    address = urlsplit(engine.url)
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {engine.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), 60) as connection:
        connection.sendall(head.encode() + body)
