"""`branchline serve` as a process: how it starts, what it refuses in one line, and how it stops."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
import sys
from contextlib import closing, suppress
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from adapters.errors import RegistryUnavailable
from adapters.registry import Registry
from router.cli import OPEN_FILES, listen, serve
from router.errors import ConfigInvalid
from tests.gateway_parts import Stock, make_stock
from tests.gateway_process import GatewayProcess, branchline, serving
from tests.unread_stream import port_of, read_to_the_end, unread_stream

KEY = "k-0123456789abcdef"
ECHO = ("--backend", "echo", "--base", "tiny")
# Echoed, 7.5 MB: more than the buffers between a server and a client that does not read, and within echo's context.


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), versions=2)


@pytest.fixture
def home(stock: Stock, tmp_path: Path) -> Path:
    return stock.copy(tmp_path / "home").folder


# -- refusals --------------------------------------------------------------------------------------------------------


def attempt(home: Path, *words: str, **variables: str) -> Result:
    return CliRunner().invoke(serve, [*ECHO, *words, "--home", str(home)], env=variables)


def test_a_port_that_is_taken_is_one_line_and_exit_1(home: Path) -> None:
    with closing(listen("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = branchline("serve", *ECHO, "--port", port, home=home, expect=1)
    assert len(said.splitlines()) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in said


def test_a_port_is_taken_as_soon_as_a_gateway_starts_and_not_only_when_it_serves() -> None:
    with closing(listen("127.0.0.1", 0)) as first, pytest.raises(ConfigInvalid, match="cannot listen"):
        listen("127.0.0.1", first.getsockname()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="another process's limits can be read on Linux only")
def test_a_gateway_may_open_more_files_than_a_shell_allows_at_first(home: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
    try:
        with serving(home, *ECHO) as gateway:
            found = resource.prlimit(gateway.process.pid, resource.RLIMIT_NOFILE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert found == (OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard), hard)


def test_answers_are_sent_at_once() -> None:
    async def accepted_without_delay() -> bool:
        loop = asyncio.get_running_loop()
        seen: asyncio.Future[bool] = loop.create_future()

        def accept(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted = writer.get_extra_info("socket")
            seen.set_result(bool(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
            writer.close()

        with closing(listen("127.0.0.1", 0)) as bound:
            async with await asyncio.start_server(accept, sock=bound):
                _, writer = await asyncio.open_connection(*bound.getsockname())
                without_delay = await seen
                writer.close()
                return without_delay

    assert asyncio.run(accepted_without_delay())


@pytest.mark.parametrize(
    ("words", "variables", "message"),
    [
        (("--host", "0.0.0.0"), {}, "without a key"),  # noqa: S104 - refused
        (("--host", "::"), {}, "without a key"),
        ((), {"BRANCHLINE_API_KEY": "short"}, "at least 16"),
        ((), {"BRANCHLINE_API_KEY": ""}, "set but empty"),
        (("--port", "70000"), {}, "port is 70000"),
        (("--port", "0", "--decision-log", "/dev/null/log"), {}, "decision log"),
        (("--host", "no-such-host.invalid"), {"BRANCHLINE_API_KEY": KEY}, "cannot listen"),
    ],
)
def test_what_cannot_be_served_with_is_refused_at_the_start(
    home: Path, words: tuple[str, ...], variables: dict[str, str], message: str
) -> None:
    refused = attempt(home, *words, **variables).exception
    assert isinstance(refused, ConfigInvalid)
    assert message in str(refused)
    assert KEY not in str(refused)


def test_a_registry_that_cannot_be_opened_is_refused_at_the_start(home: Path) -> None:
    refused = attempt(home, "--port", "0", "--registry", "sqlite:////dev/null/registry.db").exception
    assert isinstance(refused, RegistryUnavailable)


# -- life ------------------------------------------------------------------------------------------------------------


def test_a_gateway_that_was_stopped_and_started_again_serves_what_was_in_force(home: Path) -> None:
    branchline("route", "promote", "sql@1", "--force", "a test", home=home)
    answers = []
    for _ in range(2):
        with serving(home, *ECHO, variables={"BRANCHLINE_API_KEY": KEY}) as gateway:
            headers = {"authorization": f"Bearer {KEY}"}
            body = {"model": "sql", "messages": [{"role": "user", "content": "hello"}]}
            answers.append(httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers=headers).json())
            gateway.wait_for("routes in force: sql@1")
            gateway_ids = heartbeats(home)
            assert len(gateway_ids) == 1
        assert gateway.wait() == 0
        assert heartbeats(home) == []
        assert KEY not in gateway.output
        assert "Traceback" not in gateway.output
    assert answers[0]["choices"] == answers[1]["choices"]


def heartbeats(home: Path) -> list[str]:
    registry = Registry.open(f"sqlite:///{home / 'registry.db'}")
    try:
        return [row.gateway_id for row in registry.gateways()]
    finally:
        registry.close()


def test_an_ipv6_loopback_is_served_without_a_key(home: Path) -> None:
    try:
        listen("::1", 0).close()
    except ConfigInvalid:
        pytest.skip("no IPv6 here")
    with serving(home, *ECHO, "--host", "::1") as gateway:
        assert gateway.url.startswith("http://[::1]:")
        assert httpx.get(f"{gateway.url}/v1/models").json()["data"][0]["id"] == "tiny"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_the_running_answer_finish_and_exits_0(home: Path, number: signal.Signals) -> None:
    with serving(home, *ECHO) as gateway, unread_stream(gateway) as connection:
        gateway.signal(number)
        gateway.wait_for("running answers may finish")
        until_nobody_new_is_let_in(gateway)
        received = read_to_the_end(connection)
        assert received.rstrip().endswith(b"data: [DONE]\n\n\r\n0")
        assert gateway.wait() == 0
    assert "Traceback" not in gateway.output
    assert heartbeats(home) == []


def test_a_second_signal_does_not_wait_for_the_running_answer(home: Path) -> None:
    with serving(home, *ECHO) as gateway, unread_stream(gateway) as connection:
        gateway.signal(signal.SIGINT)
        gateway.wait_for("running answers may finish")
        gateway.signal(signal.SIGINT)
        gateway.wait_for("stopping at once")
        assert gateway.wait() == 0
        assert b"[DONE]" not in read_to_the_end(connection)
    assert heartbeats(home) == []


def test_a_signal_while_it_starts_ends_it_in_good_order(home: Path) -> None:
    gateway = GatewayProcess.start(home, *ECHO, "--port", "0")
    try:
        gateway.wait_for("starting the echo engine")
        gateway.signal(signal.SIGINT)
        assert gateway.wait() == 0
        assert "Traceback" not in gateway.output
    finally:
        gateway.stop()
    assert heartbeats(home) == []


def until_nobody_new_is_let_in(gateway: GatewayProcess) -> None:
    with suppress(ConnectionRefusedError, ConnectionResetError):  # reset: it was in the queue of a socket that closed
        while True:
            socket.create_connection(("127.0.0.1", port_of(gateway)), timeout=60).close()
