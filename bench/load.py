"""A load generator in a process of its own, so that it costs those it measures as little as possible.

    python -m bench.load < PLAN.json > LEGS.json

A plan is a row of legs, run one after another by one process. A leg asks one server in a closed loop (`concurrency`
clients, each of which asks again when it has its answer) or in an open one (`rate` requests a second, whatever comes
back). Answers have a fixed length: greedy, `ignore_eos`. SIGTERM ends a plan early; what runs is waited for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field

import aiohttp

from .processes import cpu_seconds, family

PAUSE_SECONDS = 0.1  # a client that was refused does not ask again at once
_MODEL = re.compile(rb'"model": ?"([^"]*)"')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


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
        *(sys.executable, "-m", "bench.load"), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    return RunningLoad(process, asyncio.create_task(process.communicate(plan)))


async def run_load(legs: Sequence[Leg], watched: Mapping[str, int] | None = None) -> list[Ran]:
    """Run `legs` one after another and return what came of each."""
    return await (await start_load(legs, watched)).legs()


# -- inside the load process ------------------------------------------------------------------------------------------


async def _run_plan(plan: Mapping[str, object]) -> list[Ran]:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    legs = [Leg(**{**leg, "asks": [Ask(**ask) for ask in leg["asks"]]}) for leg in plan["legs"]]  # type: ignore[attr-defined]
    watched: dict[str, int] = plan["watched"]  # type: ignore[assignment]
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=60)
    timeout = aiohttp.ClientTimeout(total=120)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        return [await _run_leg(session, leg, watched, stop) for leg in legs if not stop.is_set()]


async def _run_leg(session: aiohttp.ClientSession, leg: Leg, watched: Mapping[str, int], stop: asyncio.Event) -> Ran:
    asks = _asks(leg, stop)
    before = _cpu(watched)
    began, started = time.time(), time.perf_counter()
    if leg.rate is not None:
        answers = await _open_loop(session, leg, asks, leg.rate)
    else:
        clients = (_client(session, leg, asks) for _ in range(leg.concurrency or 1))
        answers = [one for each in await asyncio.gather(*clients) for one in each]
    seconds = time.perf_counter() - started
    return Ran(leg.name, began, seconds, {name: used - before[name] for name, used in _cpu(watched).items()}, answers)


def _cpu(watched: Mapping[str, int]) -> dict[str, float]:
    return {name: sum(map(cpu_seconds, family(pid))) for name, pid in watched.items()}


def _asks(leg: Leg, stop: asyncio.Event) -> Iterator[tuple[int, Ask]]:
    """What is still to be asked; all clients of a leg share it."""
    numbered = list(enumerate(leg.asks))
    endless: Iterable[tuple[int, Ask]] = numbered if leg.seconds is None else itertools.cycle(numbered)
    deadline = time.monotonic() + (leg.seconds or float("inf"))
    for ask in endless:
        if stop.is_set() or time.monotonic() > deadline:
            return
        yield ask


async def _client(session: aiohttp.ClientSession, leg: Leg, asks: Iterator[tuple[int, Ask]]) -> list[Answered]:
    answers = []
    for number, ask in asks:
        answers.append(await _ask(session, leg, number, ask))
        if answers[-1].problem is not None:
            await asyncio.sleep(PAUSE_SECONDS)
    return answers


async def _open_loop(
    session: aiohttp.ClientSession, leg: Leg, asks: Iterator[tuple[int, Ask]], rate: float
) -> list[Answered]:
    started = time.monotonic()
    running = []
    for position, (number, ask) in enumerate(asks):
        await asyncio.sleep(max(0.0, started + position / rate - time.monotonic()))
        running.append(asyncio.create_task(_ask(session, leg, number, ask)))
    return await asyncio.gather(*running)


async def _ask(session: aiohttp.ClientSession, leg: Leg, number: int, ask: Ask) -> Answered:
    body = {
        "model": ask.model,
        "messages": [{"role": "user", "content": ask.text}],
        "max_tokens": ask.tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": ask.stream,
        **({"stream_options": {"include_usage": True}} if ask.stream else {}),
    }
    sent, started = time.time(), time.perf_counter()
    pieces: list[bytes] = []
    arrivals: list[float] = []
    status, headers, problem = 0, {}, None
    try:
        request = session.post(
            f"{leg.url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {leg.key}"}
        )
        async with request as response:
            status, headers = response.status, {name.lower(): value for name, value in response.headers.items()}
            async for piece in response.content.iter_any():
                at = round(time.perf_counter() - started, 5)
                arrivals += [at] * (piece.count(b"data: ") if ask.stream else not arrivals)
                pieces.append(piece)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        problem = type(error).__name__
    seconds = time.perf_counter() - started
    content = b"".join(pieces)
    return Answered(
        ask=number,
        sent=sent,
        seconds=seconds,
        status=status,
        first=arrivals[0] if arrivals else None,
        tokens=int((_TOKENS.findall(content) or [b"0"])[-1]),
        model=(_MODEL.findall(content[:2000]) or [b""])[0].decode(),
        reason=headers.get("x-branchline-reason", ""),
        overhead=float(headers.get("x-branchline-overhead-ms", 0)) / 1000,
        retry_after=headers.get("retry-after", ""),
        arrivals=arrivals if ask.stream else (),
        problem=problem or _fault(status, content, ask.stream),
    )


def _fault(status: int, content: bytes, stream: bool) -> str | None:
    """Why an answer is none, in a few words."""
    if status != 200:
        code = re.search(rb'"code": ?"?([^",}]*)', content)
        return f"{status} {code[1].decode() if code else ''}".strip()
    if stream and b"data: [DONE]" not in content[-64:]:
        return "stream cut short" + (", said so" if b'"error"' in content[-1000:] else "")
    return None


def main() -> None:
    """Run the plan on stdin and print what came of it."""
    legs = asyncio.run(_run_plan(json.load(sys.stdin)))
    json.dump([asdict(leg) for leg in legs], sys.stdout)


if __name__ == "__main__":
    main()
