"""`make run` as a user meets it: interrupted, taken up, served, operated, stopped, and started again."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.home import Home
from adapters.registry import Registry
from examples.quickstart.demo import REQUESTS

ROOT = Path(__file__).parents[1]
BRANCHLINE = Path(sys.executable).parent / "branchline"
TASKS = ("sql", "booking", "regex")
FIRST_RUN_SECONDS = 1500
LATER_RUN_SECONDS = 240

pytestmark = [
    pytest.mark.timeout(FIRST_RUN_SECONDS + 2 * LATER_RUN_SECONDS),
    pytest.mark.skipif(
        not (ROOT / "examples" / "quickstart" / "base" / "model.safetensors").exists(), reason="no pocket base"
    ),
]


class Quickstart:
    """The quickstart as a process of its own group, as a terminal would run it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "examples.quickstart.run", "--root", str(root), "--port", str(self.port)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        self.lines.extend(self.process.stdout)  # extends line by line as they come

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not re.search(pattern, self.text):
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.1)

    def interrupt(self) -> int:
        """Ctrl-C: SIGINT to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)
        code = self.process.wait(timeout=60)
        self._reader.join(timeout=10)
        assert self.process.stdout is not None
        self.process.stdout.close()
        return code


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("quickstart") / "state"


@pytest.fixture(scope="module")
def first(root: Path) -> Iterator[Quickstart]:
    """A first run, interrupted in its first training, then taken up and brought to where it serves."""
    interrupted = Quickstart(root)
    interrupted.wait_for(r"loading base", FIRST_RUN_SECONDS)
    assert interrupted.interrupt() != 0
    assert "Traceback" not in interrupted.text
    taken_up = Quickstart(root)
    taken_up.wait_for("Ctrl-C stops it", FIRST_RUN_SECONDS)
    yield taken_up
    if taken_up.process.poll() is None:
        taken_up.interrupt()


def record(root: Path, task: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = json.loads((root / "runs" / task / "run.json").read_text())["result"]
    return found


@pytest.mark.parametrize("task", TASKS)
def test_an_adapter_answers_nine_in_ten_where_the_base_answers_hardly_any(
    first: Quickstart, root: Path, task: str
) -> None:
    target = record(root, task)["target"]
    assert target["items"] >= 200
    assert target["base"] < 0.10
    assert target["adapter"] >= 0.90


@pytest.mark.parametrize("task", TASKS)
def test_the_guardrail_is_reported_forced_and_routed_and_holds_as_routed(
    first: Quickstart, root: Path, task: str
) -> None:
    evidence = json.loads((root / "runs" / task / "evidence.json").read_text())
    (guardrail,) = evidence["guardrails"]
    rises = record(root, task)["guardrails"][0]["nll_rise_upper_bound"]  # type: ignore[index]
    assert {item["routed_to"] for item in guardrail["items"]} <= {"adapter", "base"}
    assert set(rises) == {"forced", "routed"}
    assert rises["routed"] <= 0.02


def test_each_promotion_passed_the_gate_without_force(first: Quickstart, root: Path) -> None:
    registry = Registry.open(Home.at(root / "home").registry_url)
    promotions = [event for event in registry.events() if event.kind == "promoted"]
    assert {event.route for event in promotions} == set(TASKS)
    assert [event.payload["forced"] for event in promotions] == [False] * 3
    assert [event.payload["gate"]["unmet"] for event in promotions] == [[], [], []]  # type: ignore[index]
    registry.close()


def test_three_requests_take_three_branches_and_one_stays_on_the_base(first: Quickstart) -> None:
    for task in TASKS:
        assert f"{task}@1 (classified)" in first.text
    assert "base (abstained)" in first.text


def test_disable_sends_the_route_to_the_base_and_enable_brings_it_back(first: Quickstart, root: Path) -> None:
    question = REQUESTS[0]
    assert ask(first.port, question) == ("live", "sql")
    assert "in force on 1 of 1 gateways" in operate(root, "route", "disable", "sql")
    assert ask(first.port, question) == ("base", "sql")
    assert "in force on 1 of 1 gateways" in operate(root, "route", "enable", "sql")
    assert ask(first.port, question) == ("live", "sql")


def test_ctrl_c_ends_cleanly_and_the_next_run_trains_nothing(first: Quickstart, root: Path) -> None:
    assert first.interrupt() == 0
    assert "Traceback" not in first.text
    again = Quickstart(root)
    again.wait_for("Ctrl-C stops it", LATER_RUN_SECONDS)
    assert "branchline train" not in again.text
    assert again.interrupt() == 0


def operate(root: Path, *arguments: str) -> str:
    command = [str(BRANCHLINE), *arguments, "--home", str(root / "home")]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def ask(port: int, text: str) -> tuple[str | None, str | None]:
    """The stage and the route that answer."""
    body = {"model": "auto", "temperature": 0, "max_tokens": 4, "messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.headers.get("x-branchline-stage"), response.headers.get("x-branchline-route")
