"""Gateways that are killed and clocks that jump: another gateway goes on, and what was in force comes back."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import replace

from .fault_clients import load
from .fault_engine_cases import judged
from .fault_ground import PINNED, WHOLE, Count, Ground, start_gateway, until


async def gateway_killed(ground: Ground) -> Count:
    """kill -9 of one of two: the other one misses nothing, and a new one comes up with what is in force."""
    survivor, killed = ground.gateways
    async with load([survivor.url], PINNED) as ran, load([killed.url], WHOLE) as lost:
        await lost.more(ground.answers // 2)
        killed.signal(signal.SIGKILL)
        await asyncio.to_thread(killed.stop)
        with ground.registry() as registry:
            registry.disable("sql")
        await ran.more(ground.answers)
    ground.gateways.remove(killed)
    again = await asyncio.to_thread(start_gateway(ground).wait_until_serving)
    async with load([again.url], WHOLE) as after:
        await after.more(ground.answers // 2)
    with ground.registry() as registry:
        registry.enable("sql")
    await until(lambda: not ground.ready(again.url)["warming"], "that everything is resident")
    named = [one for one in after.answers if one.question.model == "sql"]
    wrong = [f"sql, disabled, was answered by {one.version}" for one in named if one.stage != "base"]
    cut_off = sum(one.failure is not None for one in lost.answers)
    counted = judged([*ran.answers, *after.answers], cut=False, note=f"{cut_off} clients of the killed one saw it go")
    return replace(counted, broken=[*counted.broken, *wrong])
