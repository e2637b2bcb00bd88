"""Clients that leave, dawdle or say nothing, and a gateway that has no files left: everybody else is served."""

from __future__ import annotations

import asyncio
import random
import re
import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from .fault_clients import CHAT, Question, load
from .fault_engine_cases import judged
from .fault_ground import PINNED, Count, Ground, fetch, is_whole, until
from .processes import family

LEAVING = 200
DAWDLING = 100
SPARE_FILES = 4  # that the gateway may open beside those it has
PRESSING = 60  # clients at once while it has none left
Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def clients_leave(ground: Ground) -> Count:
    """They reset the connection before, at or amid the answer: the engines stop, no file stays open."""
    files = _open_files(ground)
    async with load(ground.urls, PINNED) as ran:
        await asyncio.gather(*[_leave(ground, number) for number in range(LEAVING)])
        await ran.more(ground.answers)
    await until(lambda: outstanding(ground) == 0, "that no engine works for them any more")
    await until(lambda: _open_files(ground) <= files + 16, "that their files are closed")
    return judged(ran.answers, cut=False, note=f"{LEAVING} clients left")


async def slow_loris(ground: Ground) -> Count:
    """Connections that send their head a byte at a time."""
    async with _connections(ground, DAWDLING) as dawdling, load(ground.urls, PINNED) as ran:
        head = _request(Question("sql"), ground)[:60]
        for byte in head:
            for _, writer in dawdling:
                with suppress(ConnectionError):
                    writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        await ran.more(ground.answers)
    return judged(ran.answers, cut=False, note=f"beside {DAWDLING} connections")


async def half_open(ground: Ground) -> Count:
    """Connections that say nothing, stop half-way in a body, or never read their answer."""
    async with _connections(ground, DAWDLING) as connections, load(ground.urls, PINNED) as ran:
        request = _request(Question("sql", stream=True), ground)
        for number, (reader, writer) in enumerate(connections):
            reader._transport.pause_reading()  # type: ignore[attr-defined]  # it never reads
            writer.write((b"", request[:-10], request)[number % 3])
        await ran.more(2 * ground.answers)
    await until(lambda: outstanding(ground) == 0, "that no engine works for them any more")
    return judged(ran.answers, cut=False, note=f"beside {DAWDLING} connections")


async def no_files_left(ground: Ground) -> Count:
    """The limit of open files is reached, and kept connections to an engine break: who is let in gets an answer or an
    OpenAI error, and afterwards all get answers.
    """
    (gateway,) = ground.gateways
    questions = [replace(one, expect=frozenset({200, 429, 502, 503})) for one in PINNED]
    with ExitStack() as limits:
        limits.enter_context(_few_files(family(gateway.process.pid)))
        async with load(ground.urls, questions, clients=PRESSING) as ran:
            pressed = await ran.more(ground.answers)
            ground.stand_ins[0].behave("breaks")
            pressed += await ran.more(ground.answers)
            ground.stand_ins[0].behave("healthy")
            limits.close()
            await until(lambda: is_whole(ground), "that the engines are up")
            await asyncio.sleep(2)  # asyncio takes no connection for a second after it could not
            after = await ran.more(ground.answers)
    flood = [f"it wrote {line}" for line in gateway.lines if "out of system resource" in line]
    refused = sum(one.status != 200 for one in pressed)
    late = [f"{one.status} with files to spare" for one in after if one.status != 200]
    counted = judged(ran.answers, note=f"{refused} of {len(pressed)} were refused meanwhile")
    return replace(counted, broken=[*counted.broken, *late, *flood])


@contextmanager
def _few_files(pids: Sequence[int]) -> Iterator[None]:
    """These processes can open `SPARE_FILES` more at most."""
    before = [(pid, resource.prlimit(pid, resource.RLIMIT_NOFILE)) for pid in pids]
    for pid, (_, hard) in before:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (_highest_file(pid) + 1 + SPARE_FILES, hard))
    try:
        yield
    finally:
        for pid, limits in before:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)


async def _leave(ground: Ground, number: int) -> None:
    """One client that resets its connection after a while that differs from the others'."""
    host, port = _address(ground)
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(_request(Question("sql", stream=number % 2 == 0), ground))
    if number % 4 == 0:
        await reader.read(20)
    await asyncio.sleep(random.Random(number).uniform(0, 0.1))
    writer.transport.abort()


@asynccontextmanager
async def _connections(ground: Ground, count: int) -> AsyncIterator[list[Connection]]:
    host, port = _address(ground)
    async with AsyncExitStack() as stack:
        opened = [await asyncio.open_connection(host, port) for _ in range(count)]
        for _, writer in opened:
            stack.callback(writer.transport.abort)
        yield opened


def _request(question: Question, ground: Ground) -> bytes:
    body = question.body
    host, port = _address(ground)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def _address(ground: Ground) -> tuple[str, int]:
    found = urlsplit(ground.urls[0])
    return str(found.hostname), int(found.port or 0)


def outstanding(ground: Ground) -> float:
    """Calls that engines answer now, by the gateway's account."""
    lines = re.findall(r"^branchline_engine_outstanding\{.*\} (\S+)$", fetch(f"{ground.urls[0]}/metrics"), re.MULTILINE)
    return sum(map(float, lines))


def _open_files(ground: Ground) -> int:
    return len(list(Path(f"/proc/{ground.gateways[0].process.pid}/fd").iterdir()))


def _highest_file(pid: int) -> int:
    return max(int(path.name) for path in Path(f"/proc/{pid}/fd").iterdir())
