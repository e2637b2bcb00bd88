"""The load generator's own process: a plan on stdin, what came of each leg on stdout.

    python -m bench.load_process < PLAN.json > LEGS.json

SIGTERM ends a plan early; what runs is waited for.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict

import aiohttp

from .load import Answered, Ask, Leg, Ran
from .processes import cpu_seconds, family

PAUSE_SECONDS = 0.1  # a client that failed does not ask again at once; where it is told when, it waits as long
_MODEL = re.compile(rb'"model": ?"([^"]*)"')
_TOKENS = re.compile(rb'"completion_tokens": ?(\d+)')


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
            await asyncio.sleep(float(answers[-1].retry_after or PAUSE_SECONDS))
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
