"""How a gateway of several workers ends: in order, at once, without its parent, and where workers do not live."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from adapters.home import Home
from adapters.keys import ApiKey, KeyLimits
from router.backends.echo import EchoBackend
from router.backends.vllm.told import ToldEngines
from router.cli import listen
from router.errors import WorkersFailed
from router.keys.principal import KeyRing
from router.policy import Snapshot
from router.settings import read_settings
from router.workers.agreement import Agreement
from router.workers.crew import MAX_STILLBORN, Crew
from router.workers.messages import Hello
from router.workers.process import Worker
from tests.gateway_process import GatewayProcess
from tests.unread_stream import port_of, read_to_the_end, unread_stream
from tests.worker_processes import DEADLINE, is_running, stopped, wait_until, workers_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked at in /proc")


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[GatewayProcess]:
    words = ("--backend", "echo", "--base", "tiny", "--workers", "2", "--port", "0")
    started = GatewayProcess.start(tmp_path, *words)
    try:
        yield started.wait_until_serving()
    finally:
        started.stop()


def test_a_signal_lets_the_running_answers_of_all_workers_finish(gateway: GatewayProcess) -> None:
    workers = workers_of(gateway.process.pid)
    with unread_stream(gateway) as one, unread_stream(gateway) as other:
        gateway.signal(signal.SIGTERM)
        gateway.wait_for("running answers may finish")
        wait_until(lambda: not lets_in(gateway), "nobody new is let in")
        for connection in (one, other):
            assert read_to_the_end(connection).rstrip().endswith(b"data: [DONE]\n\n\r\n0")
        assert gateway.wait() == 0
    assert not any(map(is_running, workers))
    assert "Traceback" not in gateway.output
    assert "takes its place" not in gateway.output


def test_a_second_signal_ends_it_at_once_with_all_its_workers(gateway: GatewayProcess) -> None:
    workers = workers_of(gateway.process.pid)
    with unread_stream(gateway) as connection:
        gateway.signal(signal.SIGINT)
        gateway.wait_for("running answers may finish")
        gateway.signal(signal.SIGINT)
        gateway.wait_for("stopping at once")
        assert gateway.wait() == 0
        assert b"[DONE]" not in read_to_the_end(connection)
    assert not any(map(is_running, workers))
    assert "Traceback" not in gateway.output


def test_workers_whose_parent_was_killed_end_by_themselves(gateway: GatewayProcess) -> None:
    workers = workers_of(gateway.process.pid)
    gateway.signal(signal.SIGKILL)
    gateway.process.wait()
    wait_until(lambda: not any(map(is_running, workers)), "no worker")
    assert not lets_in(gateway)


def test_while_the_parent_hangs_its_workers_say_that_they_are_not_ready(gateway: GatewayProcess) -> None:
    url = f"http://127.0.0.1:{port_of(gateway)}"
    assert httpx.get(f"{url}/ready", timeout=DEADLINE).status_code == 200
    with stopped(gateway.process.pid):
        assert httpx.get(f"{url}/health", timeout=DEADLINE).status_code == 200
        assert httpx.get(f"{url}/ready", timeout=DEADLINE).json()["ready"] is False
        metrics = httpx.get(f"{url}/metrics", timeout=DEADLINE)
        assert (metrics.status_code, metrics.json()["error"]["code"]) == (503, "engine_unavailable")
    assert httpx.get(f"{url}/ready", timeout=DEADLINE).status_code == 200


@pytest.mark.parametrize(
    ("program", "end"),
    [
        ("raise SystemExit(3)", "ended with exit code 3"),
        ("import os, sys, time; os.write(int(sys.argv[3]), b'\\0\\0\\0\\2J{]'); time.sleep(600)", "killed by SIGKILL"),
    ],
    ids=["ends", "babbles"],
)
def test_workers_that_end_or_babble_as_soon_as_they_are_started_end_the_gateway(
    tmp_path: Path, program: str, end: str
) -> None:
    words = [sys.executable, "-I", "-S", "-c", program]

    async def scenario() -> None:
        with closing(listen("127.0.0.1", 0)) as bound:
            crew = Crew(2, agreement_of(tmp_path), [bound], EchoBackend("tiny"), nobody_asks, command=words)
            try:
                await crew.run()
            finally:
                await crew.stop()

    with pytest.raises(WorkersFailed, match=f"{MAX_STILLBORN} workers in a row .* {end}"):
        asyncio.run(scenario())


def test_while_one_worker_takes_requests_the_gateway_lives_however_many_others_cannot_be_started(
    tmp_path: Path,
) -> None:
    first, go = tmp_path / "first", tmp_path / "go"
    program = f"""
import os, runpy, time
try:
    os.close(os.open({str(first)!r}, os.O_CREAT | os.O_EXCL))
except FileExistsError:
    while not os.path.exists({str(go)!r}):
        time.sleep(0.005)
    raise SystemExit(3)
runpy.run_module("router.workers.worker", run_name="__main__")
"""
    words = [sys.executable, "-P", "-c", program]

    async def scenario() -> None:
        with closing(listen("127.0.0.1", 0)) as bound:
            agreement = agreement_of(tmp_path)
            crew = Crew(2, agreement, [bound], EchoBackend("tiny"), nobody_asks, command=words)
            running = asyncio.create_task(crew.run())
            try:
                await agreement.all_serving(1, DEADLINE)
                go.touch()
                async with asyncio.timeout(DEADLINE):
                    while crew._stillborn < MAX_STILLBORN:  # noqa: ASYNC110 - a process sets no event
                        await asyncio.sleep(0.005)
                assert len(agreement.serving) == 1
                assert crew.drain()
                await running
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await crew.stop()

    asyncio.run(scenario())


def test_a_worker_that_does_not_answer_is_killed_and_replaced(tmp_path: Path) -> None:
    def others_than(first: int) -> set[int]:
        return {pid for pid in workers_of(os.getpid()) if pid != first}

    async def scenario() -> None:
        with closing(listen("127.0.0.1", 0)) as bound:
            agreement = agreement_of(tmp_path)
            crew = Crew(1, agreement, [bound], EchoBackend("tiny"), nobody_asks, hung_seconds=2.0)
            running = asyncio.create_task(crew.run())
            try:
                await agreement.all_serving(1, DEADLINE)
                (first,) = workers_of(os.getpid())
                with stopped(first):
                    async with asyncio.timeout(DEADLINE):
                        while is_running(first) or not others_than(first):  # noqa: ASYNC110 - a process sets no event
                            await asyncio.sleep(0.005)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
                await crew.stop()

    asyncio.run(scenario())
    assert not workers_of(os.getpid())


def test_workers_are_told_the_keys_that_changed_and_a_new_one_all(tmp_path: Path) -> None:
    def key(number: int, revoked_at: str | None = None) -> ApiKey:
        return ApiKey(f"k{number}", f"app-{number}", "inference", None, KeyLimits(), "then", revoked_at, "00")

    ring = KeyRing().updated(map(key, range(3)))
    agreement, old, new = agreement_of(tmp_path, lambda: ring), Listening(1), Listening(2)
    agreement.join(cast(Worker, old))
    agreement.tell(Snapshot(1, "tiny", {}), [], lambda: None)
    ring = ring.updated([key(1, revoked_at="now"), key(3)])
    agreement.tell(Snapshot(2, "tiny", {}), [], lambda: None)
    agreement.tell(Snapshot(3, "tiny", {}), [], lambda: None)
    agreement.join(cast(Worker, new))
    assert old.keys == [["k0", "k1", "k2"], ["k0", "k1", "k2"], ["k1", "k3"], []]
    assert new.keys == [["k0", "k1", "k2", "k3"]]


class Listening:
    """A worker that keeps the ids of the keys it is told."""

    serves, acknowledged = False, 0

    def __init__(self, number: int) -> None:
        self.number = number
        self.keys: list[list[str]] = []
        self.channel = self

    def tell(self, what: str, body: dict[str, Any]) -> None:
        if what == "told":
            self.keys.append([one["id"] for one in body["keys"]])


def agreement_of(home: Path, keys: Callable[[], KeyRing] = KeyRing) -> Agreement:
    engine = {"base": "tiny", "backend": "echo"}
    settings = read_settings(Home.at(home), {}, host="127.0.0.1", port=0, engine=engine)
    return Agreement(Hello(0, settings, "tiny", None, loopback=True), keys, ToldEngines)


async def nobody_asks(what: str, _body: dict[str, Any]) -> dict[str, Any]:
    raise AssertionError(what)


def lets_in(gateway: GatewayProcess) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port_of(gateway)), timeout=60).close()
    except (ConnectionRefusedError, ConnectionResetError):  # reset: it was in the queue of a socket that closed
        return False
    return True
