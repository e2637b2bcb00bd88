"""What happens to the gateway meanwhile: an operator who changes something every second, engines that are killed."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

from adapters.errors import Refused
from adapters.registry import Registry

from .fault_ground import ROUTES, Ground, is_whole, until
from .soak_traffic import Seen

GONE_SECONDS = 2.0  # from a kill to the new start


async def operate(ground: Ground, done: Counter[str], every: float, stop: asyncio.Event) -> None:
    """A promote, rollback, disable or enable of some route, `every` so many seconds; in the end all are enabled."""
    chosen = random.Random(2)
    while not await waited(stop, every):
        done[await asyncio.to_thread(_change, ground, chosen)] += 1
    with ground.registry() as registry:
        for route in ROUTES:
            if not registry.route(route).enabled:
                registry.enable(route)


def _change(ground: Ground, chosen: random.Random) -> str:
    """What was done, in a word."""
    route = chosen.choice(ROUTES)
    with ground.registry() as registry:
        if not registry.route(route).enabled:
            registry.enable(route)
            return "enable"
        verb = chosen.choice(("promote", "rollback", "disable"))
        if verb == "disable":
            registry.disable(route)
        elif verb == "promote" or not _rolled_back(registry, route):
            registry.promote(route, 1 if registry.route(route).live == 2 else 2, forced="soak")
            return "promote"
        return verb


def _rolled_back(registry: Registry, route: str) -> bool:
    try:
        registry.rollback(route)
    except Refused:
        return False
    return True


async def kill(ground: Ground, seen: Seen, every: float, stop: asyncio.Event) -> None:
    """`every` so many seconds one engine, in turn; it comes back, and holds everything before the next one goes."""
    number = 0
    while not await waited(stop, every):
        engine = ground.engines[number % len(ground.engines)]
        seen.kills.append(time.monotonic())
        await asyncio.to_thread(engine.kill)
        await asyncio.sleep(GONE_SECONDS)
        await asyncio.to_thread(engine.restart)
        await until(lambda: is_whole(ground), "that the engine is back")
        number += 1


async def waited(stop: asyncio.Event, seconds: float) -> bool:
    """Whether `stop` came within so many seconds."""
    try:
        async with asyncio.timeout(seconds):
            return await stop.wait()
    except TimeoutError:
        return False
