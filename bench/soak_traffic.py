"""Mixed traffic at a constant rate: every answer is judged by what it was promised, and counted."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import aiohttp

from .fault_clients import CHAT, Answer, Question, ask
from .fault_ground import Ground

KEPT = 20  # broken promises that are kept in words
CUT_SECONDS = 3.0  # after a kill: until then a stream may learn that it was cut
PROBED = 16  # clients that ask one question after another, to find the capacity
_NAMED = frozenset({200, 409})  # a version by its number: 409 while its route is disabled
_DANGEROUS = {"model": "sql", "messages": [{"role": "user", "content": "x"}], "prompt_logprobs": 1}
MIX: Sequence[tuple[int, Question]] = (
    (30, Question("sql")),
    (15, Question("booking", stream=True)),
    (20, Question("auto")),
    (10, Question("auto", "a table for two on friday", stream=True)),
    (5, Question("booking@1", expect=_NAMED)),
    (5, Question("base", stream=True)),
    (2, Question("nobody", expect=frozenset({404}))),
    (2, Question("auto", raw=b'{"model": "auto", "model": "sql"}', expect=frozenset({400}))),
    (1, Question("auto", raw=json.dumps(_DANGEROUS).encode(), expect=frozenset({400}))),
)
LEAVING = 10  # of a hundred clients go before their answer has come whole


@dataclass(slots=True)
class Seen:
    """What came of all requests. `kills` are the moments (monotonic) at which an engine was killed."""

    asked: int = 0
    left: int = 0
    cut: int = 0
    broken: int = 0
    words: list[str] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)
    kills: list[float] = field(default_factory=list)

    def judge(self, answer: Answer) -> None:
        self.statuses[answer.status] += 1
        self.cut += answer.is_cut
        broken = answer.broken
        if answer.is_cut and not any(
            answer.asked <= kill + CUT_SECONDS <= answer.ended + 2 * CUT_SECONDS for kill in self.kills
        ):
            broken = broken or "a stream was cut while no engine was killed"
        if broken:
            self.note(f"{answer.question.model}: {broken}")

    def note(self, word: str) -> None:
        self.broken += 1
        if len(self.words) < KEPT:
            self.words.append(word)


async def capacity(ground: Ground, seconds: float) -> float:
    """Requests a second that the gateway and these clients together can do, on this machine as it is now."""
    stop, seen = time.monotonic() + seconds, Seen()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def client(number: int) -> None:
            chosen = random.Random(number)
            while time.monotonic() < stop:
                await _one(session, ground, seen, chosen)

        await asyncio.gather(*[client(number) for number in range(PROBED)])
    return seen.asked / seconds


async def traffic(ground: Ground, seen: Seen, rate: float, stop: asyncio.Event) -> None:
    """`rate` requests a second, whatever comes back, until `stop`; all answers are in when it returns."""
    chosen, due = random.Random(1), time.monotonic()
    running: set[asyncio.Task[None]] = set()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        while not stop.is_set():
            task = asyncio.create_task(_one(session, ground, seen, chosen))
            running.add(task)
            task.add_done_callback(running.discard)
            due += 1 / rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*running)


async def _one(session: aiohttp.ClientSession, ground: Ground, seen: Seen, chosen: random.Random) -> None:
    (question,) = chosen.choices([one for _, one in MIX], [share for share, _ in MIX])
    seen.asked += 1
    if chosen.random() * 100 < LEAVING:
        seen.left += 1
        await _leave(session, ground.urls[0], question, chosen.uniform(0, 0.05))
    else:
        seen.judge(await ask(session, ground.urls[0], question))


async def _leave(session: aiohttp.ClientSession, gateway: str, question: Question, seconds: float) -> None:
    """Ask, and go after so many seconds, whatever has come by then."""
    with suppress(TimeoutError, aiohttp.ClientError):
        async with asyncio.timeout(seconds), session.post(gateway + CHAT, data=question.body) as response:
            await response.read()
