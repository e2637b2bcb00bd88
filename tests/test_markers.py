"""Prompts and keys appear nowhere: a marker in each, then a search of everything that was written.

A real gateway process, every logger at DEBUG, before an engine that repeats what it was asked in its errors.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapters.base import Base
from tests.adapter_folders import make_base
from tests.gateway_process import GatewayProcess, branchline, environment
from tests.programmable_engine import BASE_ID, DEADLINE, ProgrammableEngine, answer, error, frames, reset, stream

AT_DEBUG = (
    "import logging, sys; logging.basicConfig(level=logging.DEBUG, stream=sys.stderr); "
    "from adapters.main import main; sys.argv = ['branchline', *sys.argv[1:]]; main()"
)
PLACES = (
    *("prompt", "system", "tool", "assistant", "user", "param", "model", "garbage", "type", "path", "query"),
    *("header", "requestid", "internal", "origin", "wrongkey", "feedback", "gatewaykey", "enginekey", "secret"),
)
MARKS = {place: f"marker-of-{place}-7f3a91" for place in PLACES}
CHAT = "/v1/chat/completions"


def marked(*places: str, stream: bool = False) -> dict[str, Any]:
    """A chat with markers in its turns, its tools and its arguments."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": json.dumps({"a": MARKS["tool"]})}}
    messages = [
        {"role": "system", "content": MARKS["system"]},
        {"role": "assistant", "content": MARKS["assistant"], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": MARKS["tool"]},
        {"role": "user", "content": f"select {MARKS['prompt']}"},
    ]
    more = {place: MARKS[place] for place in places}
    return {"model": "auto", "messages": messages, "stream": stream, "user": MARKS["user"], **more}


class Running:
    """A gateway process with its engine in a thread, and what it was asked."""

    def __init__(self, home: Path, base: Base, *words: str) -> None:
        self.home = home
        self.engine = ProgrammableEngine(key=MARKS["enginekey"], base_fingerprint=base.fingerprint)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.on_loop(self.engine.start())
        command = [sys.executable, "-c", AT_DEBUG, "serve", "--backend", "vllm", "--engine", self.engine.url]
        command += ["--base", str(base.folder), "--port", "0", "--home", str(home), *words]
        keys = {"BRANCHLINE_API_KEY": MARKS["gatewaykey"], "BRANCHLINE_ENGINE_API_KEY": MARKS["enginekey"]}
        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment(**keys)
        )
        self.gateway = GatewayProcess.around(process).wait_until_serving()

    def on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(DEADLINE)

    def stop(self) -> None:
        self.gateway.stop()
        self.on_loop(self.engine.kill())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE)
        self._loop.close()

    def ask(self, path: str = CHAT, key: str = MARKS["gatewaykey"], **request: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {key}", **request.pop("headers", {})}
        return httpx.post(f"{self.gateway.url}{path}", headers=headers, timeout=DEADLINE, **request)


@contextmanager
def running(root: Path, *words: str) -> Iterator[Running]:
    base = make_base(root / BASE_ID)
    home = root / "home"
    branchline("route", "create", "sql", home=home)
    found = Running(home, base, "--decision-log", str(home / "decisions.jsonl"), *words)
    try:
        yield found
    finally:
        found.stop()


def provoke(served: Running) -> list[str]:
    """Send every marker through everything that could go wrong; what came back to others."""
    said = json.dumps(MARKS)
    for order in (error(400, said), error(500, said), error(404, said), answer(said.encode(), status=503), reset):
        served.engine.order(order)
        served.ask(json=marked())
    for order in (
        answer(MARKS["prompt"].encode()),
        answer(said.encode(), content_type="text/html", status=502),
        stream(*frames(BASE_ID, MARKS["prompt"])[:1], then=reset),
        stream(b'data: {"error": {"message": "' + MARKS["prompt"].encode() + b'", "code": 500}}\n\n'),
        stream(b"data: " + MARKS["prompt"].encode() * 99),
    ):
        served.engine.order(order)
        served.ask(json=marked(stream=True))
    served.ask(json=marked())
    served.ask(json=marked("model"))
    served.ask(json={**marked(), "prompt_logprobs": MARKS["param"], MARKS["param"]: 1})
    served.ask(json={**marked(), "messages": [{"role": "user", "content": {MARKS["prompt"]: 1}}]})
    served.ask(content=f'{{"model": "auto", "{MARKS["garbage"]}'.encode(), headers={"content-type": "application/json"})
    served.ask(content=MARKS["garbage"].encode(), headers={"content-type": MARKS["type"]})
    served.ask(f"/v1/{MARKS['path']}?a={MARKS['query']}", json={})
    served.ask(json=marked(), key=MARKS["wrongkey"])
    hostile = {
        "x-request-id": MARKS["requestid"] + "@",
        "x-branchline-route": MARKS["internal"],
        "x-a": MARKS["header"],
    }
    served.ask(json=marked(), headers={**hostile, "user-agent": MARKS["header"], "cookie": MARKS["header"]})
    served.ask(json=marked(), headers={"origin": f"http://{MARKS['origin']}"})
    served.ask("/v1/feedback", json={"route": "sql", "text": MARKS["feedback"]})
    served.ask("/v1/feedback", json={"route": "sql", "text": MARKS["feedback"], "user": " "})
    others = [served.ask(json={"model": "auto", "messages": [{"role": "user", "content": "hello"}]})]
    others += [served.ask(json={"model": "nobody", "messages": []}), served.ask("/v1/completions", json={})]
    pages = ("/metrics", "/ready", "/health", "/v1/models", "/admin/v1/engines", "/openapi.json")
    key = {"authorization": f"Bearer {MARKS['gatewaykey']}"}
    others += [httpx.get(f"{served.gateway.url}{page}", headers=key, timeout=DEADLINE) for page in pages]
    return [f"{one.headers} {one.text}" for one in others]


def found_in(written: str, *, but: tuple[str, ...] = ()) -> list[str]:
    return [place for place, mark in MARKS.items() if mark in written and place not in but]


def tables(home: Path) -> Mapping[str, str]:
    with closing(sqlite3.connect(home / "registry.db")) as database:
        names = [name for (name,) in database.execute("select name from sqlite_master where type = 'table'")]
        return {name: repr(database.execute(f'select * from "{name}"').fetchall()) for name in names}  # noqa: S608


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, list[str]]]:
    with running(tmp_path_factory.mktemp("markers")) as served:
        others = provoke(served)
        yield served, others


def test_the_markers_were_really_sent_and_reached_the_engine(told: tuple[Running, list[str]]) -> None:
    sent = "".join(json.dumps(seen.body) for seen in told[0].engine.calls)
    assert {"prompt", "system", "tool", "assistant", "user"} <= set(found_in(sent))


def test_no_marker_of_a_request_is_in_what_the_process_says_at_any_level(told: tuple[Running, list[str]]) -> None:
    output = told[0].gateway.output
    assert "DEBUG" in output
    assert found_in(output) == []


def test_no_marker_is_in_what_others_get(told: tuple[Running, list[str]]) -> None:
    assert [found_in(one) for one in told[1] if found_in(one)] == []


def test_no_header_of_the_client_reaches_the_engine(told: tuple[Running, list[str]]) -> None:
    headers = "".join(f"{dict(seen.headers)}" for seen in told[0].engine.calls)
    assert found_in(headers, but=("enginekey",)) == []
    assert not [
        name for seen in told[0].engine.calls for name in seen.headers if name.lower().startswith("x-branchline")
    ]


def test_no_marker_is_in_the_decision_log_without_texts(told: tuple[Running, list[str]]) -> None:
    log = (told[0].home / "decisions.jsonl").read_text(encoding="utf-8")
    assert log.count("\n") > 2
    assert found_in(log) == []


def test_of_all_markers_only_the_proposed_text_is_in_the_registry_and_in_no_event(
    told: tuple[Running, list[str]],
) -> None:
    holding = {name: found_in(rows) for name, rows in tables(told[0].home).items() if found_in(rows)}
    assert list(holding.values()) == [["feedback"]]
    assert "events" not in holding


def test_no_other_marker_is_in_any_file_of_the_home(told: tuple[Running, list[str]]) -> None:
    files = [path for path in told[0].home.rglob("*") if path.is_file()]
    content = b"".join(path.read_bytes() for path in files).decode("latin-1")
    assert len(files) > 1
    assert found_in(content, but=("feedback",)) == []


def test_no_key_stands_in_the_command_line_of_the_process(told: tuple[Running, list[str]]) -> None:
    command = Path(f"/proc/{told[0].gateway.process.pid}/cmdline").read_bytes().decode()
    assert "serve" in command
    assert found_in(command) == []


def test_with_texts_switched_on_the_classified_turn_alone_is_in_the_file_of_its_day(tmp_path: Path) -> None:
    with running(tmp_path, "--decision-log-text") as served:
        served.ask(json=marked())
        served.ask(json=marked(stream=True))
        key = branchline("key", "create", "shop", "--role", "inference", "--no-wait", home=served.home).strip()
        gateway = served.gateway
        served.engine.order(reset)
        served.ask(json=marked(), key=key)
        (shown,) = json.loads(branchline("key", "list", "--json", home=served.home))
    (log,) = (path for path in served.home.iterdir() if path.name.startswith("decisions."))
    assert found_in(log.read_text(encoding="utf-8")) == ["prompt"]
    by = [json.loads(line)["key_id"] for line in log.read_text(encoding="utf-8").splitlines()]
    assert by == [None, None, shown["id"]]
    others = b"".join(path.read_bytes() for path in served.home.rglob("*") if path.is_file() and path != log)
    assert found_in(others.decode("latin-1") + gateway.output) == []
    assert key.encode() not in others + log.read_bytes() + gateway.output.encode()
    assert log.stat().st_mode & 0o077 == 0


def test_texts_given_to_the_admin_api_are_in_the_registry_alone_and_in_no_event(tmp_path: Path) -> None:
    """What is wrong about a body is told to who sent it; the process, its metrics and the audit trail say nothing."""
    with running(tmp_path) as served:
        texts = "/admin/v1/routes/sql/examples", "/admin/v1/corrections"
        kept = [
            served.ask(texts[0], json={"texts": [MARKS["prompt"]]}, headers={"idempotency-key": "job-7"}),
            served.ask(texts[1], json={"route": "sql", "texts": [MARKS["feedback"]]}),
        ]
        assert [one.status_code for one in kept] == [200, 200], [one.text for one in kept]
        refused = [
            served.ask(texts[0], json={"texts": [MARKS["system"], 7]}),
            served.ask(texts[0], json={"texts": [MARKS["user"]], MARKS["param"]: MARKS["tool"]}),
            served.ask(texts[0], content=f'{{"texts": ["{MARKS["garbage"]}'.encode()),
            served.ask(texts[1], json={"route": MARKS["model"], "texts": [MARKS["assistant"]]}),
            served.ask(f"/admin/v1/routes/{MARKS['path']}/examples?{MARKS['query']}", json={"texts": ["x"]}),
            served.ask(texts[0], json={"texts": [MARKS["secret"]]}, headers={"if-match": MARKS["type"]}),
            served.ask(texts[0], json={"texts": [MARKS["secret"]]}, key=MARKS["wrongkey"]),
        ]
        assert [one.status_code for one in refused if one.status_code < 400] == []
        metrics = served.ask("/metrics").text + httpx.get(f"{served.gateway.url}/health", timeout=DEADLINE).text
        gateway = served.gateway
    assert found_in(gateway.output + metrics) == []
    holding = {name: found_in(rows) for name, rows in tables(served.home).items() if found_in(rows)}
    assert "events" not in holding
    assert {mark for marks in holding.values() for mark in marks} == {"prompt", "feedback"}
    assert found_in((served.home / "decisions.jsonl").read_text(encoding="utf-8")) == []
