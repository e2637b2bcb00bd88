"""One gateway of two workers, as clients and operators see it: whichever answers, it is the same gateway."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.classifiers import promote_classifier
from adapters.convergence import wait_exemplars, wait_in_force
from adapters.corrections import correct
from adapters.exemplars import exemplars_of
from adapters.home import Home
from adapters.journal import Change
from adapters.keyring import create_key, revoke_key
from adapters.keys import KeyLimits
from adapters.registry import Registry
from tests.gateway_parts import make_stock
from tests.gateway_process import GatewayProcess, serving
from tests.unread_stream import unread_stream
from tests.worker_processes import stopped, wait_until, workers_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


@dataclass(frozen=True, slots=True)
class Served:
    """A running gateway and its registry; `key` is an operator's."""

    gateway: GatewayProcess
    registry: Registry
    key: str
    log: Path

    @property
    def workers(self) -> list[int]:
        return workers_of(self.gateway.process.pid)

    @contextmanager
    def alone(self, place: int) -> Iterator[None]:
        """Only that worker answers."""
        with stopped(*[pid for at, pid in enumerate(self.workers) if at != place]):
            yield

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.gateway.url + path, headers=self.headers(), timeout=60)

    def ask(self, model: str, text: str = "hello", key: str | None = None) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": text}]}
        url = f"{self.gateway.url}/v1/chat/completions"
        return httpx.post(url, json=body, headers=self.headers(key), timeout=60)

    def headers(self, key: str | None = None) -> dict[str, str]:
        return {"authorization": f"Bearer {key or self.key}"}

    def in_force(self, serial: int, seconds: float = 60.0) -> bool:
        """Whether the gateway says in time that event `serial` is in force."""
        found = wait_in_force(self.registry, serial, started=time.monotonic(), timeout_seconds=seconds)
        return bool(found.in_force) and not found.problems


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("workers")
    home = Home.at(make_stock(folder, versions=2).home)
    registry = Registry.open(home.registry_url)
    log = folder / "decisions.jsonl"
    try:
        registry.promote("sql", 1, forced="a test")
        registry.promote("sql", 2, forced="a test")
        key = create_key(registry, "watcher", "operator").secret
        words = ("--backend", "echo", "--base", "tiny", "--workers", "2", "--decision-log", str(log))
        with serving(home.folder, *words) as gateway:
            yield Served(gateway, registry, key, log)
        assert "Traceback" not in gateway.output
    finally:
        registry.close()


@pytest.fixture(params=[0, 1], ids=["first", "second"])
def place(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


def test_each_worker_answers_by_itself(served: Served, place: int) -> None:
    assert len(served.workers) == 2
    with served.alone(place):
        answer = served.ask("sql")
    assert answer.headers["x-branchline-version"] == "2"
    assert re.match(r"\[sql@2\.[0-9a-f]{16}\] hello", answer.json()["choices"][0]["message"]["content"])


def test_a_version_asked_for_by_number_is_loaded_by_the_parent(served: Served, place: int) -> None:
    with served.alone(place):
        answer = served.ask(f"regex@{place + 1}")
    assert answer.headers["x-branchline-stage"] == "pinned"


def test_what_the_engine_refuses_is_refused_alike(served: Served, place: int) -> None:
    with served.alone(place):
        body = {"model": "sql", "messages": [{"role": "user", "content": "x"}], "temperature": 9}
        refused = httpx.post(f"{served.gateway.url}/v1/chat/completions", json=body, headers=served.headers())
    assert refused.status_code == 400
    assert refused.json()["error"]["param"] == "temperature"


def test_disable_enable_and_rollback_are_in_force_on_every_worker_when_the_gateway_says_so(served: Served) -> None:
    registry = served.registry
    steps: list[tuple[Callable[[], Change], tuple[str | None, str]]] = [
        (lambda: registry.disable("sql"), (None, "route_disabled")),
        (lambda: registry.enable("sql"), ("2", "pinned")),
        (lambda: registry.rollback("sql"), ("1", "pinned")),
        (lambda: registry.promote("sql", 2, forced="a test"), ("2", "pinned")),
    ]
    for change, (version, reason) in steps:
        assert served.in_force(change().event.serial)
        for place in range(2):
            with served.alone(place):
                headers = served.ask("sql").headers
            assert (headers.get("x-branchline-version"), headers["x-branchline-reason"]) == (version, reason)


def test_a_change_is_not_said_to_be_in_force_while_one_worker_does_not_follow(served: Served) -> None:
    with served.alone(0):
        serial = served.registry.disable("sql").event.serial
        assert not served.in_force(serial, seconds=0.5)
        assert served.ask("sql").headers["x-branchline-reason"] == "route_disabled"
    assert served.in_force(serial)
    assert served.in_force(served.registry.enable("sql").event.serial)


def test_the_classifier_and_a_correction_are_in_force_on_every_worker_when_the_gateway_says_so(served: Served) -> None:
    registry = served.registry
    (row,) = registry.gateways()
    assert row.classifier_digest is None
    promote_classifier(registry, 1)
    wanted = registry.classifiers()[0].digest
    wait_until(lambda: registry.gateways()[0].classifier_digest == wanted, "the classifier")
    text = "please water the plants at noon"
    for place in range(2):
        with served.alone(place):
            assert "x-branchline-version" not in served.ask("auto", text).headers
    correct(registry, "sql", [text])
    digest = exemplars_of(registry).digest
    found = wait_exemplars(registry, registry.serial(), digest, started=time.monotonic(), timeout_seconds=60)
    assert not found.problems
    for place in range(2):
        with served.alone(place):
            headers = served.ask("auto", text).headers
        assert (headers.get("x-branchline-route"), headers["x-branchline-reason"]) == ("sql", "classified")


def test_metrics_are_the_sum_of_all_workers_whoever_is_asked(served: Served) -> None:
    before = _counted(served)
    for place, times in ((0, 2), (1, 3)):
        with served.alone(place):
            for _ in range(times):
                served.ask("tiny")
    assert [_counted(served) for _ in range(6)] == [before + 5] * 6
    page = served.get("/metrics").text
    assert page.count("\n# TYPE branchline_requests_total") + page.count("\n# TYPE branchline_requests counter") == 1
    assert re.search(r'^branchline_engine_up\{engine="echo"\} 1\.0$', page, re.MULTILINE)


def _counted(served: Served) -> float:
    page = served.get("/metrics").text
    found = re.findall(r'^branchline_requests_total\{.*reason="base_requested".*\} (\S+)$', page, re.MULTILINE)
    return sum(map(float, found))


def test_ready_and_the_engines_are_the_same_from_every_worker(served: Served) -> None:
    seen = []
    for place in range(2):
        with served.alone(place):
            engines = served.get("/admin/v1/engines").json()
            url = f"{served.gateway.url}/admin/v1/engines/echo/drain"
            refused = httpx.post(url, headers=served.headers()).json()
            seen.append((served.get("/ready").json(), engines, refused))
    assert seen[0] == seen[1]
    ready, engines, refused = seen[0]
    assert ready["ready"]
    assert ready["engines"] == {"up": 1}
    assert engines["engines"][0]["resident"] >= 2
    assert "cannot be drained" in refused["error"]["message"]


def test_a_limit_of_a_key_is_one_limit_for_all_workers(served: Served) -> None:
    limits = KeyLimits(requests_per_minute=4)
    made = create_key(served.registry, "limited", "inference", limits=limits)
    assert served.in_force(made.event.serial)
    statuses = []
    for place in (0, 1, 0, 1, 0, 1):
        with served.alone(place):
            statuses.append(served.ask("tiny", key=made.secret))
    assert [one.status_code for one in statuses] == [200] * 4 + [429] * 2
    assert [one.headers["x-ratelimit-remaining-requests"] for one in statuses[:4]] == ["3", "2", "1", "0"]
    assert served.in_force(revoke_key(served.registry, "limited").event.serial)
    for place in range(2):
        with served.alone(place):
            assert served.ask("tiny", key=made.secret).status_code == 401


def test_decisions_of_all_workers_are_whole_lines_of_one_log(served: Served) -> None:
    lines = len(served.log.read_bytes().splitlines())
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda at: served.ask("tiny", f"request {at}"), range(40)))
    wait_until(lambda: served.log.read_bytes().count(b"\n") >= lines + 40, "the lines")
    facts: list[dict[str, Any]] = [json.loads(line) for line in served.log.read_bytes().splitlines()[lines:]]
    assert {one["request_id"] for one in facts} == {one.headers["x-request-id"] for one in answers}


def test_a_client_that_goes_away_ends_the_engines_work_in_the_parent(served: Served) -> None:
    with unread_stream(served.gateway, served.key):
        wait_until(lambda: _outstanding(served) == 1, "a call in the engine")
    wait_until(lambda: _outstanding(served) == 0, "no call in the engine")


def test_a_killed_worker_is_replaced_while_the_other_goes_on_and_nothing_that_was_counted_is_lost(
    served: Served,
) -> None:
    first, second = served.workers
    before = _counted(served)
    with served.alone(0), unread_stream(served.gateway, served.key) as connection:
        os.kill(second, signal.SIGKILL)
        wait_until(lambda: len(served.workers) == 2 and second not in served.workers, "another worker")
        assert served.ask("tiny").status_code == 200
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert received.rstrip().endswith(b"data: [DONE]\n\n\r\n0")
    assert first in served.workers
    served.gateway.wait_for(r"worker \d \(process \d+\) was killed by SIGKILL; another takes its place")
    (new,) = set(served.workers) - {first}
    with stopped(first):
        answer = served.ask("auto", "please water the plants at noon")
    assert answer.headers["x-branchline-route"] == "sql"  # it had its judge before it took a request
    assert new in served.workers
    assert _counted(served) == before + 2


def test_a_worker_that_is_told_to_end_finishes_its_answers_and_another_takes_its_place(served: Served) -> None:
    first, second = served.workers
    with served.alone(1), unread_stream(served.gateway, served.key) as connection:
        os.kill(second, signal.SIGTERM)
        received = b"".join(iter(lambda: connection.recv(1 << 16), b""))
        assert received.rstrip().endswith(b"data: [DONE]\n\n\r\n0")
        wait_until(lambda: second not in served.workers and len(served.workers) == 2, "another worker")
    assert first in served.workers
    served.gateway.wait_for(r"ended with exit code 0; another takes its place")


def _outstanding(served: Served) -> int:
    return int(served.get("/admin/v1/engines").json()["engines"][0]["outstanding"])
