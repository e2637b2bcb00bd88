"""The parts of the measurement, and in which order they run: every round asks all servers in turn."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from .gateway_cells import Arm, Bench, Load, memory_of
from .open_loop import Came

PARTS = ("cpu", "streamed", "sizes", "latency", "memory")
SMALL = 1024
SIZES = {"16kb": 16 * 1024, "256kb": 256 * 1024}
FIRST_MS, EVENT_MS = 50.0, 2.0
MEMORY_MARKS = 10
ASKED = 200
DECISION_HEADERS = {"x-branchline-stage", "x-branchline-reason", "x-ratelimit-limit-requests", "x-request-id"}
FEWEST_CLIENTS, MOST_CLIENTS = 8, 512


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds of one cell in one round; rounds; seconds of each arm at a constant rate; requests of the memory part;
    ways of answering (names of `_cells`) whose latency is wanted.
    """

    seconds: float
    rounds: int
    latency_seconds: float
    requests: int
    answers: Sequence[str] = ("", "streamed")


@dataclass(frozen=True, slots=True)
class Latency:
    """One arm at a constant rate, and straight to the upstream at the same one. `carried`: requests/s at most."""

    carried: float
    rate: float
    came: Came
    straight: Came
    cpu_us: float


@dataclass(frozen=True, slots=True)
class Held:
    """Memory in MB after so many requests."""

    requests: int
    mb: float


@dataclass(slots=True)
class Found:
    """All that was measured. Keys: the cell (`""`, `streamed`, `16kb`, …) and the arm."""

    loads: dict[tuple[str, str], list[Load]] = field(default_factory=lambda: defaultdict(list))
    latencies: dict[tuple[str, str], Latency] = field(default_factory=dict)
    memory: list[Held] = field(default_factory=list)
    memory_of: dict[str, float] = field(default_factory=dict)
    classified: float | None = None


async def measure(bench: Bench, arms: Sequence[Arm], parts: Sequence[str], effort: Effort) -> Found:
    """Warm every arm up, then run the parts in their order."""
    found = Found()
    straight = Arm("straight", bench.upstream, bench.upstream.model)
    ways = [straight, *arms]
    for arm in ways:
        await bench.load(arm, 1)
        _require_answers(bench, arm)
        if arm.name == "auto":
            found.classified = _classified(bench, arm)
    for cell, size, stream in _cells(parts):
        for _ in range(effort.rounds if size == SMALL else min(2, effort.rounds)):
            for arm in ways:
                _say(f"{cell or 'cpu'}: {arm.name}")
                load = await bench.load(arm, effort.seconds, size=size, stream=stream)
                found.loads[cell, arm.name].append(load)
    if "latency" in parts:
        for cell in effort.answers:
            for arm in arms:
                _say(f"latency {cell}: {arm.name}")
                found.latencies[cell, arm.name] = await _latency(bench, straight, arm, effort, stream=bool(cell))
    own = next((arm for arm in reversed(arms) if arm.server.name == "branchline"), None)
    if "memory" in parts and own is not None:
        found.memory = await _memory(bench, own, effort.requests)
    found.memory_of = {arm.server.name: memory_of(arm.server) for arm in arms}
    return found


def _require_answers(bench: Bench, arm: Arm) -> None:
    """Raise `RuntimeError` where the server does other work than the one that is measured."""
    for stream in (False, True):
        answer = bench.ask(arm, stream=stream)
        text = b"The balance of"
        if answer.status != 200 or text not in answer.body or (stream and b"[DONE]" not in answer.body):
            raise RuntimeError(f"{arm.name} answers {answer.status}: {answer.body[:200]!r}")
        if arm.server.name == "branchline" and not answer.headers.keys() >= DECISION_HEADERS:
            raise RuntimeError(f"Branchline does not do all it should: {sorted(answer.headers)}")


def _classified(bench: Bench, arm: Arm) -> float:
    """The share (0 to 1) of the texts that go to a version; raises `RuntimeError` where there is no classifier."""
    reasons = [bench.ask(arm).headers.get("x-branchline-reason") for _ in range(ASKED)]
    if "classified" not in reasons:
        raise RuntimeError(f"nothing is classified: {', '.join(map(str, set(reasons)))}; make the --home anew")
    return reasons.count("classified") / ASKED


def _cells(parts: Sequence[str]) -> list[tuple[str, int, bool]]:
    """Name, body size and whether answers are streamed."""
    sizes = [(name, size, False) for name, size in SIZES.items()]
    each = {"cpu": [("", SMALL, False)], "streamed": [("streamed", SMALL, True)], "sizes": sizes}
    return [cell for part in PARTS if part in parts for cell in each.get(part, [])]


async def _latency(bench: Bench, straight: Arm, arm: Arm, effort: Effort, *, stream: bool) -> Latency:
    """Half of the rate it carries with the slow upstream, offered to it and to the upstream in turn."""
    cpu_us = (await bench.load(arm, 1, stream=stream)).cpu_us
    bench.behave(first_ms=FIRST_MS, event_ms=EVENT_MS if stream else 0)
    try:
        full = await bench.load(arm, max(2, effort.seconds), stream=stream, clients=_enough_clients(cpu_us))
        rate = max(2.0, full.rate / 2)
        seconds = effort.latency_seconds / 2
        ran: list[tuple[Came, float]] = []
        for way in (straight, arm, straight, arm):
            ran.append(await bench.open_loop(way, rate, seconds, stream=stream))
    finally:
        bench.behave()
    used = (ran[1][1] + ran[3][1]) / 2
    return Latency(full.rate, rate, _both(ran[1][0], ran[3][0]), _both(ran[0][0], ran[2][0]), used)


def _enough_clients(cpu_us: float | None) -> int:
    """So many that a server is busy though each waits a tenth of a second, and no more: a queue is not wanted."""
    return min(MOST_CLIENTS, max(FEWEST_CLIENTS, round(1e6 / (cpu_us or 1e6) * 0.15)))


def _both(one: Came, other: Came) -> Came:
    return Came(
        first=[*one.first, *other.first],
        whole=[*one.whole, *other.whole],
        failed=one.failed + other.failed,
        sent=one.sent + other.sent,
        late=max(one.late, other.late),
    )


async def _memory(bench: Bench, arm: Arm, requests: int) -> list[Held]:
    """Memory at every tenth of `requests`, all of them `auto` and each with another text."""
    name, held = arm.server.name, []
    rate = (await bench.load(arm, 2)).rate
    began = bench.made[name]
    for mark in range(MEMORY_MARKS + 1):
        while bench.made[name] - began < requests * mark / MEMORY_MARKS:
            left = requests * mark / MEMORY_MARKS - (bench.made[name] - began)
            rate = (await bench.load(arm, left / rate)).rate
        held.append(Held(bench.made[name], memory_of(arm.server)))
        _say(f"memory: {held[-1].requests:,} requests, {held[-1].mb:.1f} MB")
    return held


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)
