"""Limits per key: never more than said, told as OpenAI tells it, and every place comes back."""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.keys import KeyLimits
from router.errors import RateLimited
from router.keys.key_metrics import MAX_KEY_LABELS, KeyMetrics
from router.keys.limits import Limits, Meter, duration
from router.keys.principal import ANONYMOUS, Principal

MS = 0.001
STEPS = st.lists(st.floats(0, 90) | st.just(0.0), max_size=20)
LIMITS = st.integers(1, 30) | st.just(60)


@dataclass
class Clock:
    """Seconds, as a test says."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


def key(
    requests: int | None = None, tokens: int | None = None, concurrent: int | None = None, name: str = "app"
) -> Principal:
    return Principal(f"id-{name}", name, "inference", None, KeyLimits(requests, tokens, concurrent))


def refused(limits: Limits, principal: Principal) -> RateLimited:
    with pytest.raises(RateLimited) as found:
        limits.admit(principal)
    return found.value


def tried(limits: Limits, principal: Principal) -> RateLimited | None:
    """One short request; how it was refused, if it was."""
    try:
        limits.admit(principal).ended()
    except RateLimited as refusal:
        return refusal
    return None


def seconds_of(text: str) -> float:
    """The inverse of `duration`."""
    match = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m(?!s))?(?:([\d.]+)s|(\d+)ms)", text)
    assert match is not None, text
    hours, minutes, seconds, ms = (float(one or 0) for one in match.groups())
    return hours * 3600 + minutes * 60 + seconds + ms / 1000


# -- how much --------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(limit=LIMITS, steps=STEPS, burst=st.integers(1, 40))
def test_in_no_window_more_requests_are_admitted_than_the_limit_and_what_drains_in_it(
    limit: int, steps: list[float], burst: int
) -> None:
    clock = Clock()
    limits, admitted = Limits(clock), []
    for step in [0.0, *steps]:
        clock.now += step
        for _ in range(burst):
            if tried(limits, key(limit)) is None:
                admitted.append(clock.now)
    for first, last in itertools.combinations_with_replacement(range(len(admitted))[:200], 2):
        seconds = admitted[last] - admitted[first]
        assert last - first + 1 <= limit * (1 + seconds / 60) + 1e-3


@settings(max_examples=50, deadline=None)
@given(limit=LIMITS, steps=STEPS)
def test_a_key_that_keeps_to_its_rate_is_never_refused(limit: int, steps: list[float]) -> None:
    clock = Clock()
    limits = Limits(clock)
    for step in steps:
        clock.now += max(step, 60 / limit)
        limits.admit(key(limit)).ended()


@settings(max_examples=100, deadline=None)
@given(limit=LIMITS, steps=STEPS)
def test_a_refused_key_is_let_in_when_it_was_told_and_not_before(limit: int, steps: list[float]) -> None:
    clock = Clock()
    limits = Limits(clock)
    for step in steps:
        clock.now += step
        told = next((refusal for _ in range(limit) if (refusal := tried(limits, key(limit)))), None)
        if told is not None:
            wait = float(told.headers["retry-after-ms"]) * MS
            assert wait <= float(told.headers["retry-after"]) < wait + 1 + MS
            assert wait <= 60 / limit + 2 * MS
            if wait > 3 * MS:
                clock.now += wait - 3 * MS
                refused(limits, key(limit))
                clock.now += 3 * MS
            else:
                clock.now += wait
            limits.admit(key(limit)).ended()


@settings(max_examples=200, deadline=None)
@given(limit=LIMITS, uses=st.lists(st.tuples(st.floats(0, 30), st.integers(0, 3000)), min_size=1, max_size=20))
def test_all_of_a_limit_is_there_when_reset_says_and_not_before(limit: int, uses: list[tuple[float, int]]) -> None:
    meter, now = Meter(limit), 0.0
    for step, amount in uses:
        now += step
        meter.drain(now)
        meter.level += amount
    reset = meter.reset_seconds
    if meter.remaining < limit:
        meter.drain(now + reset - reset * 1e-3 - MS)
        assert meter.level > 0
    meter.drain(now + reset + MS)
    assert (meter.remaining, meter.level) == (limit, 0.0)


@settings(max_examples=100, deadline=None)
@given(limit=LIMITS, steps=st.lists(st.floats(-1e6, 60), max_size=20))
def test_a_clock_that_goes_back_neither_gives_anything_away_nor_locks_anybody_out(
    limit: int, steps: list[float]
) -> None:
    clock = Clock()
    limits, passed, admitted = Limits(clock), 0.0, 0
    for step in [0.0, *steps]:
        clock.now += step
        passed += max(0.0, step)
        while (told := tried(limits, key(limit))) is None:
            admitted += 1
        assert admitted <= limit * (1 + passed / 60) + 1e-3
        assert float(told.headers["retry-after-ms"]) * MS <= 60 / limit + 2 * MS
    clock.now += 60
    for _ in range(limit):
        limits.admit(key(limit)).ended()


def test_tokens_are_counted_when_an_answer_ends_and_what_was_overdrawn_drains_first() -> None:
    clock = Clock()
    limits = Limits(clock)
    running = [limits.admit(key(tokens=100)) for _ in range(3)]  # nobody knows yet what they will cost
    for one in running:
        one.ended(80)
    told = refused(limits, key(tokens=100))
    assert told.headers["x-ratelimit-remaining-tokens"] == "0"
    wait = float(told.headers["retry-after-ms"]) * MS
    assert wait == pytest.approx((240 + 1 - 100) * 60 / 100)  # until there is room for one token
    clock.now += wait
    assert limits.admit(key(tokens=100)).headers()["x-ratelimit-remaining-tokens"] == "1"


def test_a_prompt_whose_tokens_nobody_tells_counts_by_its_estimate() -> None:
    limits = Limits(Clock())
    told, untold = limits.admit(key(tokens=1000, name="told")), limits.admit(key(tokens=1000, name="untold"))
    for admission in (told, untold):
        admission.prompt_estimate = 50
    told.answered(7, 3)
    untold.answered(None, 3)
    assert [one.headers()["x-ratelimit-remaining-tokens"] for one in (told, untold)] == ["990", "947"]


def test_a_refused_request_costs_nothing() -> None:
    limits = Limits(Clock())
    limits.admit(key(1, concurrent=5)).ended()
    for _ in range(3):
        assert refused(limits, key(1, concurrent=5)).headers["retry-after"] == "60"


def test_keys_do_not_share_their_limits() -> None:
    limits = Limits(Clock())
    limits.admit(key(1, name="one"))
    limits.admit(key(1, name="two"))
    refused(limits, key(1, name="one"))


def test_a_changed_limit_holds_from_the_next_request_and_what_was_used_stays_used() -> None:
    clock = Clock()
    limits = Limits(clock)
    for _ in range(10):
        limits.admit(key(10))
    refused(limits, key(10))
    assert limits.admit(key(20)).headers()["x-ratelimit-remaining-requests"] == "9"
    refused(limits, key(5))
    assert limits.admit(key()).headers() == {}


# -- places ----------------------------------------------------------------------------------------------------------


def test_a_key_has_so_many_requests_at_a_time_and_not_one_more() -> None:
    limits = Limits(Clock())
    running = [limits.admit(key(concurrent=2)) for _ in range(2)]
    told = refused(limits, key(concurrent=2))
    assert (told.headers["retry-after"], "2 requests at a time" in told.message) == ("1", True)
    running[0].ended()
    limits.admit(key(concurrent=2))


def test_a_request_that_ends_twice_gives_one_place_back_and_counts_once() -> None:
    limits = Limits(Clock())
    first, second = limits.admit(key(tokens=100, concurrent=2)), limits.admit(key(tokens=100, concurrent=2))
    first.ended(10)
    first.ended(10)
    assert second.headers()["x-ratelimit-remaining-tokens"] == "90"
    _third = limits.admit(key(tokens=100, concurrent=2))
    refused(limits, key(tokens=100, concurrent=2))


def test_a_request_that_is_forgotten_gives_its_place_back() -> None:
    limits = Limits(Clock())
    forgotten = limits.admit(key(concurrent=1))
    refused(limits, key(concurrent=1))
    del forgotten
    limits.admit(key(concurrent=1))


# -- what is told ----------------------------------------------------------------------------------------------------


def test_an_answer_tells_each_limit_what_is_left_and_when_all_of_it_is_back_as_openai_does() -> None:
    limits = Limits(Clock())
    headers = limits.admit(key(60, 150_000, 3)).headers()
    assert headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "59",
        "x-ratelimit-reset-requests": "1s",
        "x-ratelimit-limit-tokens": "150000",
        "x-ratelimit-remaining-tokens": "150000",
        "x-ratelimit-reset-tokens": "0s",
    }


def test_a_key_without_limits_is_told_none() -> None:
    assert Limits(Clock()).admit(ANONYMOUS).headers() == {}


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0s"),
        (0.0115, "12ms"),
        (1, "1s"),
        (8.64, "8.64s"),
        (59.9999, "1m0s"),
        (360, "6m0s"),
        (3600, "1h0m0s"),
        (3725.5, "1h2m5.5s"),
    ],
)
def test_a_time_is_written_as_openai_writes_it(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@settings(max_examples=100, deadline=None)
@given(st.floats(0, 1e6))
def test_a_time_that_is_told_is_never_too_short_and_at_most_a_millisecond_too_long(seconds: float) -> None:
    told = seconds_of(duration(seconds))
    assert -1e-6 <= told - seconds <= MS + 1e-6
    assert math.isclose(told, seconds_of(duration(told)), abs_tol=1e-9)


def test_metrics_name_no_more_keys_than_may_be_and_count_the_rest_together() -> None:
    limits = Limits(Clock())
    for number in range(MAX_KEY_LABELS + 5):
        limits.admit(key(name=f"k{number}")).ended(2)
    limits.admit(key(0 + 1, name="k0"))
    refused(limits, key(1, name="k0"))
    found = {metric.name: metric.samples for metric in KeyMetrics(limits).collect()}
    requests = {sample.labels["key"]: sample.value for sample in found["branchline_key_requests"]}
    assert (len(requests), requests["k0"], requests["other"]) == (MAX_KEY_LABELS + 1, 2, 5)
    tokens = {sample.labels["key"]: sample.value for sample in found["branchline_key_tokens"]}
    assert (tokens["k1"], tokens["other"]) == (2, 10)
    limited = [(sample.labels, sample.value) for sample in found["branchline_key_limited"]]
    assert limited == [({"key": "k0", "limit": "requests"}, 1)]
