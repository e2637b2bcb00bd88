"""A short soak of a real gateway; CI's is longer (`BRANCHLINE_SOAK_MINUTES`), `python -m bench.soak` is for hours."""

from __future__ import annotations

import asyncio
import os

import pytest

from bench.soak import Plan, soak

SECONDS = 60 * float(os.environ.get("BRANCHLINE_SOAK_MINUTES", "0")) or 40.0


@pytest.mark.timeout(240 + 2 * SECONDS)
@pytest.mark.parametrize(("workers", "share"), [(1, 1.0), (2, 0.6)])
def test_traffic_changes_and_killed_engines_break_no_promise_and_leave_nothing_over(workers: int, share: float) -> None:
    plan = Plan(SECONDS * share, workers, rate=30.0, kill_every=8.0)
    ran = asyncio.run(soak(plan))
    assert list(ran.problems) == []
    assert len(ran.seen.kills) >= 2
    assert min(ran.changes[verb] for verb in ("promote", "rollback", "disable", "enable")) > 0
