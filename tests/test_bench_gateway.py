"""The gateway's benchmark: its requests, its arithmetic, its instant upstream, and one tiny run."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from adapters.home import Home
from bench.adapter_folder import BASE
from bench.gateway import gateway
from bench.gateway_answers import WHOLE
from bench.gateway_cells import SCRIPT, Arm, Bench, Load
from bench.gateway_home import Served
from bench.gateway_parts import Found, Held, Latency
from bench.gateway_requests import PATH, Template, endless_texts, write_texts
from bench.gateway_rows import Missed, rows_of
from bench.gateway_servers import Server, upstream
from bench.open_loop import Came, Plan, run_open_loop
from bench.processes import family_cpu_seconds
from bench.random_routes import publish_routes
from bench.results import Row

TEXTS = ["what is my balance", 'she said "wait" \\ and left', "où est la gare"]


def load(cpu_us: float, *, failed: int = 0) -> Load:
    """1,000 requests in 2 seconds at so much CPU time each."""
    return Load(answered=1000, seconds=2.0, failed=failed, reached=1000, cpu=cpu_us / 1000)


def row(rows: list[Row], what: str) -> Row:
    return next(one for one in rows if one.what == what)


@pytest.mark.parametrize("size", [1024, 16 * 1024, 256 * 1024])
@pytest.mark.parametrize("stream", [False, True])
def test_a_body_has_exactly_its_size_and_asks_the_text_last(tmp_path: Path, size: int, stream: bool) -> None:
    template = Template.of("auto", size, stream=stream, key="k", filler="Real text, again and again. ")
    template.write(tmp_path)
    write_texts(tmp_path / "texts", TEXTS)
    asked = itertools.islice(endless_texts(tmp_path / "texts", 0), len(TEXTS))
    for text, line in zip(TEXTS, asked, strict=True):
        head, _, body = Template.read(tmp_path).request(line).partition(b"\r\n\r\n")
        document = json.loads(body)
        assert head.startswith(f"POST {PATH} HTTP/1.1\r\n".encode())
        assert f"content-length: {size}".encode() in head
        assert len(body) == size
        assert document["messages"][-1] == {"role": "user", "content": text}
        assert (document["model"], document.get("stream", False)) == ("auto", stream)


def test_a_body_without_room_for_a_text_is_refused() -> None:
    with pytest.raises(ValueError, match="no room"):
        Template.of("auto", 60, stream=False, key=None, filler="x")


def test_no_text_comes_twice(tmp_path: Path) -> None:
    write_texts(tmp_path / "texts", TEXTS)
    first = list(itertools.islice(endless_texts(tmp_path / "texts", 0), 8))
    assert len(set(first)) == 8
    assert list(itertools.islice(endless_texts(tmp_path / "texts", 4), 4)) == first[4:]


def test_the_cpu_time_of_a_request_counts_what_reached_the_upstream() -> None:
    assert Load(answered=900, seconds=2.0, failed=0, reached=1000, cpu=0.5).cpu_us == pytest.approx(500)
    assert load(500).rate == 500


def test_a_round_with_failures_gives_no_cpu_time() -> None:
    found = Found()
    found.loads["", "pinned"] = [load(400), load(9, failed=3), load(500)]
    told = row(rows_of(found, [], cores=2), "cpu_us_pinned")
    assert told.value == pytest.approx(450)
    assert "3 failed" in told.note


def test_ratios_are_taken_round_by_round() -> None:
    found = Found()
    found.loads["", "pinned"] = [load(400), load(200), load(100)]
    found.loads["", "litellm"] = [load(4000), load(6000), load(1000)]
    found.loads["", "vllm_router"] = [load(100), load(100), load(100)]
    rows = rows_of(found, [], cores=2)
    assert row(rows, "cpu_litellm_over_pinned").value == pytest.approx(10)
    assert row(rows, "cpu_pinned_over_vllm_router").value == pytest.approx(2)
    assert not [one for one in rows if "auto" in one.what]


def test_a_peer_that_is_not_there_is_a_row_that_says_so() -> None:
    told = row(rows_of(Found(), [Missed("litellm", "not installed: make it")], cores=2), "cpu_us_litellm")
    assert (told.value, told.note) == (None, "not installed: make it")


def test_added_latency_is_the_difference_of_percentiles() -> None:
    found = Found()
    through, straight = ([number / 1000 for number in range(start, start + 100)] for start in (60, 50))
    came, beside = Came(first=through, whole=through, sent=100), Came(first=straight, whole=straight, sent=100)
    found.latencies["", "pinned"] = Latency(carried=800, rate=400, came=came, straight=beside, cpu_us=600)
    rows = rows_of(found, [], cores=2)
    assert row(rows, "added_ms_p50_pinned").value == pytest.approx(10)
    assert row(rows, "added_ms_p99_pinned").value == pytest.approx(10)


def test_growth_of_memory_is_told_a_request() -> None:
    found = Found(memory=[Held(0, 80), Held(1_000_000, 100), Held(2_000_000, 101)])
    rows = rows_of(found, [], cores=2)
    assert row(rows, "memory_bytes_per_request").value == pytest.approx(1)
    assert row(rows, "memory_mb_after").value == 101


def test_cpu_time_of_a_family_counts_children_that_have_ended() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        used = family_cpu_seconds(process.pid)
        process.communicate(b"\n")
    assert used >= 0.15, "the kernel counts ticks of 10 ms"


@asynccontextmanager
async def bench_of(folder: Path) -> AsyncIterator[Bench]:
    """The instant upstream, and texts for it."""
    write_texts(folder / "texts", TEXTS)
    served = Served(Home.at(folder / "home"), folder / "texts", len(TEXTS), "Real text. ", "sql")
    async with upstream(folder / "upstream.log") as server:
        yield Bench(served, server)


def test_the_open_loop_sends_on_time_whatever_comes_back(tmp_path: Path) -> None:
    """Here nothing comes back before the last request is due: all are sent, and each waits as long as it does."""

    async def run() -> Came:
        async with bench_of(tmp_path) as bench:
            bench.behave(first_ms=400, event_ms=1)
            template = Template.of("base", 1024, stream=True, key=None, filler="x")
            template.write(tmp_path)
            plan = Plan(bench.upstream.port, str(tmp_path), str(tmp_path / "texts"), 0, rate=100, seconds=0.3, warm=0)
            return await run_open_loop(plan)

    came = asyncio.run(run())
    assert (came.sent, len(came.whole), came.failed) == (30, 30, 0)
    assert min(came.first) >= 0.4
    assert all(whole > first for whole, first in zip(came.whole, came.first, strict=True))


def test_a_gateway_takes_the_instant_upstream_for_an_engine(tmp_path: Path) -> None:
    """Pinned requests, whole and streamed, reach it and come back as it wrote them."""
    home = Home.at(tmp_path / "served")
    publish_routes(home, ["sql"])

    async def run() -> None:
        async with (
            bench_of(tmp_path) as bench,
            gateway(home, "vllm", str(BASE), "--engine", bench.upstream.url) as running,
        ):
            arm = Arm("pinned", Server("branchline", running.port, running.pid, "sql"), "sql")
            for stream, ending in ((False, b'"total_tokens":40}}'), (True, b"data: [DONE]\n\n")):
                answer = await asyncio.to_thread(bench.ask, arm, stream=stream)
                assert (answer.status, answer.headers["x-branchline-reason"]) == (200, "pinned")
                assert answer.body.endswith(ending)

    asyncio.run(run())


needs_wrk = pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")


@needs_wrk
def test_wrk_sends_the_same_requests_as_the_open_loop(tmp_path: Path) -> None:
    """Byte by byte, in the order of the texts, from the given number on."""
    seen: list[bytes] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionResetError):
            while len(seen) < 8:
                head = await reader.readuntil(b"\r\n\r\n")
                seen.append(head + await reader.readexactly(1024))
                writer.write(WHOLE)
        writer.close()

    async def run() -> None:
        async with await asyncio.start_server(keep, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            command = ["wrk", "-t1", "-c1", "-d1s", "-s", str(SCRIPT), f"http://127.0.0.1:{port}", "--"]
            process = await asyncio.create_subprocess_exec(
                *command, str(tmp_path), str(tmp_path / "texts"), "2", stdout=asyncio.subprocess.DEVNULL
            )
            await process.wait()

    template = Template.of("auto", 1024, stream=False, key="k", filler="Real text. ")
    template.write(tmp_path)
    write_texts(tmp_path / "texts", TEXTS)
    asyncio.run(run())
    texts = list(itertools.islice(endless_texts(tmp_path / "texts", 2), 10))
    first = texts.index(next(text for text in texts if template.request(text) == seen[0]))
    assert seen == [template.request(text) for text in texts[first : first + 8]]


@needs_wrk
def test_wrk_is_answered_by_the_instant_upstream(tmp_path: Path) -> None:
    async def run() -> Load:
        async with bench_of(tmp_path) as bench:
            return await bench.load(Arm("straight", bench.upstream, "base"), 1, clients=2)

    counted = asyncio.run(run())
    assert (counted.failed, counted.cpu_us is not None) == (0, True)
    assert counted.reached >= counted.answered > 0
