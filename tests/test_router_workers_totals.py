"""What several workers count together: limits of keys in shared memory, and metrics that add up."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from adapters.keys import KeyLimits
from router.errors import RateLimited
from router.keys.limits import Admission, Limits
from router.keys.principal import ANONYMOUS, Principal
from router.workers.shared_limits import SharedLimits, Table, new_table
from router.workers.totals import Family, add_up, counters, families, render

# Takes all it gets of 1000 requests per minute while the clock stands, and says how much that was.
GREEDY = """
import sys
from adapters.keys import KeyLimits
from router.errors import RateLimited
from router.keys.principal import Principal
from router.workers.shared_limits import SharedLimits, Table

limits = SharedLimits(Table(int(sys.argv[1]), int(sys.argv[2])), clock=lambda: 1.0)
greedy = Principal("k", "k", "inference", None, KeyLimits(requests_per_minute=1000))
sys.stdin.read()
admitted = 0
try:
    while True:
        limits.admit(greedy).ended(0)
        admitted += 1
except RateLimited:
    print(admitted)
"""


# Stops, as a debugger or the kernel stops a process, with the lock of a key's slot in its hand.
STOPPED = """
import os, signal, sys
from router.workers.shared_limits import Table

table = Table(int(sys.argv[1]), 2)
table.lock(table.slot("k"))
os.kill(os.getpid(), signal.SIGSTOP)
"""


@pytest.fixture
def worker() -> Iterator[Callable[[int], SharedLimits]]:
    """Makes the limits of a worker; all of them share a table whose clock stands still."""
    table = Table(new_table(), 0)
    yield lambda number: SharedLimits(Table(table.descriptor, number), clock=lambda: 1.0)
    table.close()


def key(name: str = "k", **limits: int) -> Principal:
    return Principal(name, name, "inference", None, KeyLimits(**limits))


def refused(limits: Limits, principal: Principal) -> bool:
    try:
        limits.admit(principal).ended(0)
    except RateLimited:
        return True
    return False


def test_workers_share_the_requests_and_the_tokens_of_a_key(worker: Callable[[int], SharedLimits]) -> None:
    one, other = worker(1), worker(2)
    asked = key(requests_per_minute=2)
    assert [refused(limits, asked) for limits in (one, other, one, other)] == [False, False, True, True]
    talker = key("talker", tokens_per_minute=10)
    one.admit(talker).ended(10)
    assert refused(other, talker)
    assert not refused(other, key("another", tokens_per_minute=10))


def test_what_remains_is_told_alike_by_all_workers(worker: Callable[[int], SharedLimits]) -> None:
    one, other = worker(1), worker(2)
    asked = key(requests_per_minute=5)
    one.admit(asked).ended()
    assert other.admit(asked).headers()["x-ratelimit-remaining-requests"] == "3"


def test_requests_at_a_time_count_on_all_workers_and_end_with_a_worker_that_dies() -> None:
    table = Table(new_table(), 0)
    one, other = (SharedLimits(Table(table.descriptor, number)) for number in (1, 2))
    asked = key(max_concurrent=2)
    running: list[Admission] = [one.admit(asked), other.admit(asked)]
    assert refused(one, asked)
    table.clear(1)
    assert not refused(other, asked)
    running.pop().ended()
    assert not any(use.running for use in other.uses)
    running.clear()
    table.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the table is a file of its size")
def test_a_worker_that_dies_costs_no_memory_for_slots_of_no_key() -> None:
    table = Table(new_table(), 0)
    for name in ("k", "another"):
        SharedLimits(Table(table.descriptor, 1)).admit(key(name, max_concurrent=1)).ended()
    before = os.fstat(table.descriptor).st_blocks
    table.clear(1)
    assert os.fstat(table.descriptor).st_blocks == before
    table.close()


def test_limits_that_change_hold_for_all_workers_and_what_was_used_stays_used(
    worker: Callable[[int], SharedLimits],
) -> None:
    one, other = worker(1), worker(2)
    assert not any(refused(one, key(requests_per_minute=4)) for _ in range(3))
    assert refused(other, key(requests_per_minute=3))


def test_a_key_that_gets_limits_while_requests_run_is_limited_from_then_on(
    worker: Callable[[int], SharedLimits],
) -> None:
    one, other = worker(1), worker(2)
    before = one.admit(key())
    assert not any(refused(one, key(max_concurrent=1)) for _ in range(2))
    before.ended()
    running = one.admit(key(max_concurrent=1))
    assert refused(other, key(max_concurrent=1))
    running.ended()
    assert not refused(other, key(max_concurrent=1))
    assert (one.uses[0].admitted, one.uses[0].running) == (4, 0)


def test_who_has_no_limits_is_counted_and_never_refused(worker: Callable[[int], SharedLimits]) -> None:
    limits = worker(1)
    for asking in (ANONYMOUS, key("free")):
        assert not any(refused(limits, asking) for _ in range(50))
    assert [use.admitted for use in limits.uses] == [50, 50]


def test_a_worker_that_is_stopped_while_it_counts_holds_up_no_other() -> None:
    table = Table(new_table(), 0)
    holder = subprocess.Popen([sys.executable, "-c", STOPPED, str(table.descriptor)], pass_fds=[table.descriptor])
    try:
        _, status = os.waitpid(holder.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        limits = SharedLimits(Table(table.descriptor, 1), clock=lambda: 1.0)
        began = time.monotonic()
        assert [refused(limits, key(requests_per_minute=1)) for _ in range(2)] == [False, True]
        assert time.monotonic() - began < 10
        assert [refused(limits, key("another", requests_per_minute=1)) for _ in range(2)] == [False, True]
    finally:
        holder.kill()
        holder.wait()
        table.close()


def test_not_one_request_more_is_let_in_by_processes_that_ask_at_the_same_time() -> None:
    table = Table(new_table(), 0)
    words = [sys.executable, "-c", GREEDY, str(table.descriptor)]
    greedy = [
        subprocess.Popen(
            [*words, str(number)],
            pass_fds=[table.descriptor],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in (1, 2)
    ]
    for process in greedy:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    assert sum(int(process.communicate(timeout=60)[0]) for process in greedy) == 1000
    table.close()


def registry(requests: int, in_flight: int) -> CollectorRegistry:
    made = CollectorRegistry()
    Counter("requests", "Requests.", ["route"], registry=made).labels("sql").inc(requests)
    Gauge("in_flight", "Now.", registry=made).set(in_flight)
    seconds = Histogram("seconds", "Time.", registry=made, buckets=(1, 2))
    for _ in range(requests):
        seconds.observe(1.5)
    return made


def test_counters_and_histograms_add_and_a_gauge_that_the_parent_has_is_the_parents() -> None:
    page = render(registry(1, 7), [families(registry(2, 100)), families(registry(3, 100))]).decode()
    assert 'requests_total{route="sql"} 6.0\n' in page
    assert 'seconds_bucket{le="1.0"} 0.0\n' in page
    assert 'seconds_bucket{le="2.0"} 6.0\n' in page
    assert "seconds_count 6.0\n" in page
    assert "in_flight 7.0\n" in page


def test_a_gauge_that_only_workers_have_adds() -> None:
    page = render(CollectorRegistry(), [families(registry(0, 2)), families(registry(0, 3))]).decode()
    assert "in_flight 5.0\n" in page


def test_of_a_worker_that_is_gone_the_counters_stay_and_the_gauges_go() -> None:
    assert {name for name, *_ in counters(families(registry(1, 5)))} == {"requests", "seconds"}


labels = st.sampled_from([(), (("route", "sql"),), (("route", "regex"),)])
samples = st.tuples(st.sampled_from(["a_total", "b_total"]), labels, st.integers(0, 1000).map(float))
parts = st.lists(st.tuples(st.just("a"), st.just("counter"), st.just("A."), st.lists(samples, max_size=6)), max_size=3)


@given(st.lists(parts, max_size=4))
@settings(max_examples=100)
def test_no_count_is_lost_or_made_up_however_it_is_split(split: list[list[Family]]) -> None:
    def total(found: list[Family]) -> float:
        return sum(value for *_, kept in found for _, _, value in kept)

    once = add_up(split)
    assert total(once) == sum(total(part) for part in split)
    assert total(add_up([once, *split])) == 2 * total(once)
    sampled = [(name, sample, tags) for name, _, _, kept in once for sample, tags, _ in kept]
    assert len(sampled) == len(set(sampled))
