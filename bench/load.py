"""Load on a server, made by a process of its own (`load_process.py`), so that it costs what it measures little.

A plan is a row of legs, run one after another by one process. A leg asks one server in a closed loop (`concurrency`
clients, each of which asks again when it has its answer) or in an open one (`rate` requests a second, whatever comes
back). Answers have a fixed length: greedy, `ignore_eos`.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True)
class Ask:
    """One request: `tokens` is the length of its answer."""

    model: str
    text: str
    tokens: int
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Leg:
    """Requests to one server: each of `asks` once, or over and over for `seconds`.

    Exactly one of `concurrency` (closed loop) and `rate` (open loop, requests a second) is given.
    """

    name: str
    url: str
    asks: Sequence[Ask]
    concurrency: int | None = None
    rate: float | None = None
    seconds: float | None = None
    key: str = "none"


@dataclass(frozen=True, slots=True)
class Answered:
    """One request as its client saw it. `sent` is in seconds since the epoch, the rest in seconds since `sent`.

    `arrivals` holds a time for each event of a stream; `problem` is why there is no whole answer.
    """

    ask: int
    sent: float
    seconds: float
    status: int
    first: float | None
    tokens: int
    model: str
    reason: str
    overhead: float
    retry_after: str
    arrivals: Sequence[float] = ()
    problem: str | None = None

    @property
    def ended(self) -> float:
        return self.sent + self.seconds


@dataclass(frozen=True, slots=True)
class Ran:
    """A leg that was run: its wall time and the CPU time that the watched process families used meanwhile."""

    name: str
    began: float
    seconds: float
    cpu: Mapping[str, float]
    answers: Sequence[Answered] = field(default_factory=list)

    @property
    def good(self) -> Sequence[Answered]:
        return [one for one in self.answers if one.problem is None]

    @property
    def tokens_a_second(self) -> float:
        return sum(one.tokens for one in self.answers) / self.seconds


class RunningLoad:
    """A load process at work."""

    def __init__(self, process: asyncio.subprocess.Process, sent: asyncio.Task[tuple[bytes, bytes]]) -> None:
        self._process = process
        self._output = sent

    def stop(self) -> None:
        """Send nothing more; running answers may finish."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    async def legs(self) -> list[Ran]:
        """What came of it, once it has ended."""
        output, _ = await self._output
        if self._process.returncode:
            raise RuntimeError("the load generator failed; its error is above")
        rows = json.loads(output)
        return [Ran(**{**row, "answers": [Answered(**one) for one in row["answers"]]}) for row in rows]


async def start_load(legs: Sequence[Leg], watched: Mapping[str, int] | None = None) -> RunningLoad:
    """Begin to run `legs` in a process of its own. `watched` names processes whose families' CPU time is wanted."""
    plan = json.dumps({"legs": [asdict(leg) for leg in legs], "watched": watched or {}}).encode()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.load_process"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    return RunningLoad(process, asyncio.create_task(process.communicate(plan)))


async def run_load(legs: Sequence[Leg], watched: Mapping[str, int] | None = None) -> list[Ran]:
    """Run `legs` one after another and return what came of each."""
    return await (await start_load(legs, watched)).legs()
