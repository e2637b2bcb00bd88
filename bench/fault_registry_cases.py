"""A registry that is locked, gone, slow, full or read-only stops nobody: what was in force stays, visibly stale."""

from __future__ import annotations

import asyncio
import os
import resource
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from .fault_clients import Load, load
from .fault_engine_cases import judged
from .fault_ground import PINNED, Count, Ground, until
from .processes import family

Strike = Callable[[], AbstractContextManager[None]]


async def registry_locked(ground: Ground) -> Count:
    """Another process holds SQLite's write lock: heartbeats cannot be written."""
    return await struck(ground, partial(_write_lock, ground.registry_file))


async def registry_gone(ground: Ground) -> Count:
    """The file is moved away, as a careless restore does, and later back."""
    return await struck(ground, partial(_moved_away, ground.registry_file))


async def registry_garbage(ground: Ground) -> Count:
    """Another file, which is no database, stands in its place, and later the right one again."""
    return await struck(ground, partial(_replaced, ground.registry_file))


async def disk_full(ground: Ground) -> Count:
    """The gateway can write nothing any more, neither heartbeat nor decision log; standard error excepted."""
    return await struck(
        ground, partial(_no_writes, [pid for one in ground.gateways for pid in family(one.process.pid)])
    )


async def struck(ground: Ground, strike: Strike) -> Count:
    """Serve through the strike as before it, say so, and follow again when it is over."""
    async with load(ground.urls, PINNED) as ran:
        await ran.more(ground.answers // 2)
        async with _beside(strike()):
            await until(lambda: all(ground.stale(url) > 0 for url in ground.urls), "that it is visibly stale")
            during = await ran.more(ground.answers)
        await until(lambda: not any(map(ground.stale, ground.urls)), "that it is fresh again")
        await followed(ground, ran)
    lost = [
        f"{one.question.model} by {one.stage}" for one in during if one.question.model == "sql" and one.stage != "live"
    ]
    counted = judged(ran.answers, cut=False)
    return replace(counted, broken=[*counted.broken, *lost])


async def followed(ground: Ground, ran: Load) -> None:
    """A change comes into force: the route is disabled, and enabled again."""
    for change, stage in (("disable", "base"), ("enable", "live")):
        with ground.registry() as registry:
            getattr(registry, change)("sql")
        async with asyncio.timeout(60):
            while {one.stage for one in await ran.more(ground.answers // 4) if one.question.model == "sql"} != {stage}:
                pass


@asynccontextmanager
async def _beside(struck_by: AbstractContextManager[None]) -> AsyncIterator[None]:
    """Begun and ended beside the event loop: the clients go on meanwhile."""
    await asyncio.to_thread(struck_by.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(struck_by.__exit__, None, None, None)


@contextmanager
def _write_lock(file: Path) -> Iterator[None]:
    with closing(sqlite3.connect(file, isolation_level=None, timeout=30, check_same_thread=False)) as database:
        database.execute("BEGIN IMMEDIATE")
        yield
        database.execute("ROLLBACK")


@contextmanager
def _moved_away(file: Path) -> Iterator[None]:
    moved = [(path, path.with_name(f"away-{path.name}")) for path in file.parent.glob(f"{file.name}*")]
    for path, away in moved:
        path.rename(away)
    try:
        yield
    finally:
        for leftover in file.parent.glob(f"{file.name}*"):
            leftover.unlink()
        for path, away in moved:
            away.rename(path)


@contextmanager
def _replaced(file: Path) -> Iterator[None]:
    with _moved_away(file):
        file.write_bytes(os.urandom(65_536))
        yield


@contextmanager
def _no_writes(pids: list[int]) -> Iterator[None]:
    before = [(pid, resource.prlimit(pid, resource.RLIMIT_FSIZE)) for pid in pids]
    for pid, (_, hard) in before:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        for pid, limits in before:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
