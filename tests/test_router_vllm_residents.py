"""The breaker, and what is written down of an engine's memory: pure, with invented times."""

from __future__ import annotations

from router.backends.vllm.breaker import Breaker
from router.backends.vllm.residents import Residents
from tests.programmable_engine import BASE_ID, frames
from tests.vllm_backends import version

SQL = version(1)
FIRST, *REST = frames(BASE_ID, "hello")


def test_a_breaker_opens_after_failures_in_a_row_and_doubles_its_pause() -> None:
    breaker = Breaker(failures=3, first_seconds=1, longest_seconds=3)
    for _ in range(2):
        breaker.begin()
        breaker.fail(0)
    breaker.succeed()
    for _ in range(3):
        assert breaker.allows(0)
        breaker.begin()
        breaker.fail(0)
    now = 0.0
    for pause in (1, 2, 3, 3):
        assert not breaker.allows(now + pause - 0.01)
        now += pause
        assert breaker.allows(now)
        breaker.begin()
        assert not breaker.allows(now)  # one on trial is enough
        breaker.fail(now)
    now += 3
    breaker.begin()
    breaker.abandon()
    assert breaker.allows(now)
    breaker.begin()
    breaker.succeed()
    assert breaker.allows(now)


def test_failures_of_calls_that_began_before_it_opened_change_nothing() -> None:
    breaker = Breaker(failures=1, first_seconds=1)
    breaker.fail(0)
    for _ in range(10):
        breaker.fail(0.5)
    assert breaker.allows(1)


def test_residents_mirror_both_caches_of_vllm() -> None:
    residents = Residents(max_cpu_loras=3, max_loras=2)
    for name in "abc":
        residents.add(name)
    assert [residents.is_active(name) for name in "abc"] == [False, True, True]
    residents.touch("a")
    residents.add("d")
    assert [residents.has(name) for name in "abcd"] == [True, False, True, True]
    assert [residents.is_active(name) for name in "abcd"] == [True, False, False, True]
    assert residents.is_proved("b")
    assert len(residents) == 4
    residents.touch("b")
    assert not residents.has("b")
    residents.forget("a")
    assert [residents.has("a"), residents.is_proved("a"), residents.is_active("a")] == [False, False, False]


def test_versions_that_are_being_answered_for_are_not_the_ones_that_leave() -> None:
    residents = Residents(max_cpu_loras=2, max_loras=1)
    residents.add("a")
    residents.add("b")
    residents.add("c", busy=["a"])
    assert [residents.has(name) for name in "abc"] == [True, False, True]


def test_a_refused_version_is_not_asked_for_again_until_it_was_proved() -> None:
    residents = Residents()
    residents.refuse("a")
    assert residents.is_refused("a")
    residents.add("a")
    assert not residents.is_refused("a")
