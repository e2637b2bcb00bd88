"""The machine's clock jumps, for the gateway and for the operator's command alike (libfaketime)."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests.gateway_process import environment

from .fault_clients import load
from .fault_engine_cases import judged
from .fault_ground import PINNED, Count, Ground, ground_in

SYSTEM = Path("/usr/lib")
LIBRARY = "*/faketime/libfaketimeMT.so.1"
# libfaketime 0.9.10 makes a sleep until a moment of the monotonic clock fail, and so do all of Python's.
_COMMAND = "import threading, time; time.sleep = threading.Event().wait; from adapters.main import main; main()"


def missing_library() -> str | None:
    """Why clocks cannot be faked here."""
    return None if list(SYSTEM.glob(LIBRARY)) else "no libfaketime here: apt-get install libfaketime"


@asynccontextmanager
async def faked_clock(folder: Path, *flags: str) -> AsyncIterator[Ground]:
    """A gateway whose clock `_jump` sets; its monotonic clock goes on, as the kernel's does."""
    (folder / "clock").write_text("+0")
    async with ground_in(folder, *flags, variables=_variables(folder)) as ground:
        yield ground


async def clock_forward(ground: Ground) -> Count:
    """A day ahead, under load, and back to the right time."""
    return await _jumped(ground, "+1d")


async def clock_back(ground: Ground) -> Count:
    """A day back, under load, and forward to the right time."""
    return await _jumped(ground, "-1d")


async def _jumped(ground: Ground, by: str) -> Count:
    """After each jump an operator's change has to come into force, and the command has to say so."""
    said: list[str] = []
    async with load(ground.urls, PINNED) as ran:
        await ran.more(ground.answers // 2)
        for clock, verb in ((by, "disable"), ("+0", "enable")):
            (ground.folder / "clock").write_text(clock)
            await ran.more(ground.answers)
            said.append(await asyncio.to_thread(_command, ground, verb))
            stage = {"disable": "base", "enable": "live"}[verb]
            named = [one for one in await ran.more(ground.answers // 2) if one.question.model == "sql"]
            said += [f"sql was answered by {one.stage} after {verb}" for one in named if one.stage != stage]
    untold = [line for line in said if "in force on 1 of 1 gateways" not in line]
    counted = judged(ran.answers, cut=False)
    return replace(counted, broken=[*counted.broken, *untold])


def _command(ground: Ground, verb: str) -> str:
    words = ["route", verb, "sql", "--home", str(ground.home.folder)]
    command = [sys.executable, "-c", _COMMAND, *words]
    variables = environment(**_variables(ground.folder))
    return subprocess.run(command, env=variables, capture_output=True, text=True, check=True).stdout.strip()


def _variables(folder: Path) -> dict[str, str]:
    return {
        "LD_PRELOAD": str(next(SYSTEM.glob(LIBRARY))),
        "FAKETIME_TIMESTAMP_FILE": str(folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
