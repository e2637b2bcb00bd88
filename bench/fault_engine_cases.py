"""Engines that die, hang, are slow, lie or break off: what has not begun to stream never fails while one lives."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import replace

from .fault_clients import Answer, Question, load
from .fault_engine import Behaviour
from .fault_ground import PINNED, WHOLE, Count, Ground, is_whole, until

STREAMED = (
    Question("booking", stream=True),
    Question("sql", stream=True),
    Question("base", stream=True),
    Question("sql"),
)


def judged(answers: Sequence[Answer], *, cut: bool = True, note: str = "") -> Count:
    """Every answer against what is promised of it; where no stream may be cut, cut ones are broken too."""
    broken = [one.broken for one in answers if one.broken]
    cuts = sum(one.is_cut for one in answers)
    if not cut:
        broken += ["a stream was cut short"] * cuts
    told = f"{cuts} streams that had begun were cut short and said so" if cuts else ""
    return Count(len(answers), broken, ", ".join(filter(None, (note, told))))


async def engine_killed(ground: Ground) -> Count:
    """kill -9 under load, and again on the other one after the first has come back."""
    async with load(ground.urls, PINNED) as ran:
        for engine in ground.engines:
            await ran.more(ground.answers // 2)
            engine.kill()
            await ran.more(ground.answers)
            engine.restart()
            await until(lambda: is_whole(ground), "that the engine is back")
        await ran.more(ground.answers // 2)
    return judged(ran.answers)


async def engine_hung(ground: Ground) -> Count:
    """SIGSTOP: it accepts connections and nothing comes. Health checks find it out after some 15 s."""
    first = ground.stand_ins[0].process
    async with load(ground.urls, PINNED) as ran:
        await ran.more(ground.answers // 2)
        first.send_signal(signal.SIGSTOP)
        try:
            await until(lambda: ground.up() == 1, "that it is taken for down")
            await ran.more(ground.answers)
        finally:
            first.send_signal(signal.SIGCONT)
        await until(lambda: is_whole(ground), "that it is back")
    slowest = max(one.ended - one.asked for one in ran.answers)
    return judged(ran.answers, note=f"the slowest answer took {slowest:.1f} s")


async def engine_slow(ground: Ground) -> Count:
    """Half a second before each first byte: nothing is lost, nothing is cut."""
    return await _behaving(ground, "slow")


async def engine_garbage(ground: Ground) -> Count:
    """HTML and zero bytes with status 200: the other engine is asked."""
    return await _behaving(ground, "garbage")


async def engine_fails(ground: Ground) -> Count:
    """500 to everything but Branchline's own requests: the other engine is asked."""
    return await _behaving(ground, "fails")


async def engine_breaks(ground: Ground) -> Count:
    """It resets every connection that brings it a request: the other engine is asked."""
    return await _behaving(ground, "breaks")


async def engine_cuts(ground: Ground) -> Count:
    """It breaks off half-way: whole answers come from the other one, streams end with an error event."""
    async with load(ground.urls, STREAMED) as ran, asyncio.timeout(60):
        ground.stand_ins[1].behave("cuts")  # the first one, which failed in other cases, may not be trusted yet
        try:
            await ran.more(2 * ground.answers)
            while not any(one.is_cut for one in ran.answers):
                await ran.more(ground.answers)
        finally:
            ground.stand_ins[1].behave("healthy")
        await ran.more(ground.answers // 2)
    return judged(ran.answers)


async def one_of_two_gone(ground: Ground) -> Count:
    """A replica that stays away: all goes to the other one, and nothing waits for the first."""
    ground.engines[0].kill()
    await until(lambda: ground.up() == 1, "that it is taken for down")
    async with load(ground.urls, PINNED) as ran:
        await ran.more(2 * ground.answers)
    ground.engines[0].restart()
    await until(lambda: is_whole(ground), "that it is back")
    return judged(ran.answers, cut=False)


async def all_gone(ground: Ground) -> Count:
    """No engine: errors with a request id, and answers again by itself."""
    failing = [replace(one, expect=frozenset({200, 502, 503})) for one in WHOLE]
    async with load(ground.urls, failing) as ran:
        for engine in ground.engines:
            engine.kill()
        refused = [one for one in await ran.more(ground.answers) if one.status != 200]
        for engine in ground.engines:
            engine.restart()
        await until(lambda: is_whole(ground), "that both are back")
        after = await ran.more(ground.answers)
    late = [f"{one.status} with both engines back" for one in after if one.status != 200]
    unhelpful = [
        f"{one.status} without Retry-After" for one in refused if one.status == 503 and "retry-after" not in one.headers
    ]
    counted = judged(ran.answers, note=f"{len(refused)} were refused meanwhile")
    return replace(counted, broken=[*counted.broken, *late, *unhelpful])


async def _behaving(ground: Ground, how: Behaviour) -> Count:
    """One of two engines behaves so under load, then both are healthy again; no stream may be cut."""
    async with load(ground.urls, PINNED) as ran:
        ground.stand_ins[0].behave(how)
        try:
            await ran.more(2 * ground.answers)
        finally:
            ground.stand_ins[0].behave("healthy")
        await ran.more(ground.answers // 2)
    return judged(ran.answers, cut=False)
