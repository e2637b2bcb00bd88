"""Faults against real gateway processes: each breaks nothing of what is promised. The quick cases of `bench.faults`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest

from bench.fault_ground import Ground
from bench.faults import CASES, Case, place_for, strike

ANSWERS = 30  # judged in each phase of a case; `python -m bench.faults` judges more, and has the slow cases
QUICK = [case for case in CASES if case.quick]
ALONE = [case for case in QUICK if case.place == "one gateway"]
(KILLED,) = [case for case in QUICK if case.place == "two gateways"]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as made:
        yield made


@pytest.fixture(scope="module")
def ground(runner: asyncio.Runner) -> Iterator[Ground]:
    """One gateway and two engines, which every case leaves as they were."""
    stack = AsyncExitStack()
    try:
        made = runner.run(stack.enter_async_context(place_for("one gateway")))
        made.answers = ANSWERS
        yield made
    finally:
        runner.run(stack.aclose())


@pytest.mark.parametrize("case", ALONE, ids=lambda case: case.name)
def test_a_fault_breaks_no_promise(case: Case, ground: Ground, runner: asyncio.Runner) -> None:
    counted = runner.run(strike(case, ground))
    assert list(counted.broken) == []
    assert counted.requests >= ANSWERS


def test_of_two_gateways_one_is_killed_and_the_other_misses_nothing(runner: asyncio.Runner) -> None:
    async def scenario() -> list[str]:
        async with place_for("two gateways") as two:
            two.answers = ANSWERS
            return list((await strike(KILLED, two)).broken)

    assert runner.run(scenario()) == []
