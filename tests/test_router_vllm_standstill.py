"""How long an engine's counters of work have stood still."""

from router.backends.vllm.standstill import Standstill


def test_it_counts_from_the_first_look_at_the_same_counters() -> None:
    still = Standstill()
    assert [still.seconds(work, now) for now, work in ((10, [b"a 1"]), (12, [b"a 1"]), (15, [b"a 1"]))] == [0, 2, 5]


def test_a_counter_that_moves_begins_it_anew() -> None:
    still = Standstill()
    looks = ((10, [b"a 1"]), (12, [b"a 2"]), (15, [b"a 2"]))
    assert [still.seconds(work, now) for now, work in looks] == [0, 0, 3]


def test_of_an_engine_that_shows_no_counters_nothing_is_said() -> None:
    still = Standstill()
    assert [still.seconds([], now) for now in (10, 20)] == [0, 0]


def test_what_was_seen_before_something_came_back_does_not_count() -> None:
    still = Standstill()
    still.seconds([b"a 1"], 10)
    still.forget()
    assert [still.seconds([b"a 1"], now) for now in (20, 21)] == [0, 1]
