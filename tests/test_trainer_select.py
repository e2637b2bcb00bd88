"""The checkpoint rule and the routing decisions it may be judged by: pure functions."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.evidence import Evaluation, Item, RoutedTo, Score
from adapters.statistics import upper_bound
from trainer.decisions import read_decisions
from trainer.errors import DecisionsInvalid
from trainer.select import Candidate, choose, keeps

BOUND = 0.02
RISES = st.lists(st.floats(-0.2, 0.2), min_size=10, max_size=30)
CANDIDATES = st.lists(
    st.tuples(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 3), st.lists(RISES, max_size=2)), min_size=1, max_size=6
)


def guardrail(rises: Sequence[float], routed: RoutedTo | None = None, base_score: float = 0.0) -> Evaluation:
    items = tuple(
        Item(str(index), Score(base_score, 1.0, 5), Score(base_score, 1.0 + rise, 5), routed)
        for index, rise in enumerate(rises)
    )
    return Evaluation("general", "0" * 64, "exact_match", items)


def candidate(step: int, score: float, nll: float, rises: Sequence[Sequence[float]] = ()) -> Candidate:
    item = Item("0", Score(0.0, 2.0, 5), Score(score, nll, 5))
    return Candidate(step, Evaluation("eval", "0" * 64, "exact_match", (item,)), tuple(map(guardrail, rises)))


def candidates_of(drawn: Sequence[tuple[float, float, Sequence[Sequence[float]]]]) -> list[Candidate]:
    return [candidate(step, *one) for step, one in enumerate(drawn)]


@given(drawn=CANDIDATES)
def test_the_chosen_checkpoint_keeps_its_guardrails_and_no_other_that_does_scores_higher(
    drawn: list[tuple[float, float, list[list[float]]]],
) -> None:
    candidates = candidates_of(drawn)
    choice = choose(candidates, BOUND)
    kept = [one for one in candidates if all(keeps(rail, BOUND) for rail in one.guardrails)]
    assert choice.guardrail_failed == (not kept)
    pool = kept or candidates
    chosen = next(one for one in pool if one.step == choice.step)
    score = fmean(item.adapter.score for item in chosen.target.items)
    for other in pool:
        theirs = fmean(item.adapter.score for item in other.target.items)
        assert theirs <= score
        assert theirs < score or other.target.items[0].adapter.nll >= chosen.target.items[0].adapter.nll


@given(drawn=CANDIDATES, data=st.data())
def test_the_choice_does_not_depend_on_the_order_of_the_candidates(
    drawn: list[tuple[float, float, list[list[float]]]], data: st.DataObject
) -> None:
    candidates = candidates_of(drawn)
    assert choose(data.draw(st.permutations(candidates)), BOUND) == choose(candidates, BOUND)


@given(rises=RISES)
def test_a_guardrail_holds_where_the_upper_bound_of_its_rise_does(rises: list[float]) -> None:
    expected = upper_bound([1.0 + rise - 1.0 for rise in rises]) <= BOUND
    assert keeps(guardrail(rises), BOUND) == expected


@given(rises=RISES)
def test_items_that_the_base_answers_break_no_guardrail(rises: list[float]) -> None:
    assert keeps(guardrail(rises, routed="base"), BOUND)
    assert keeps(guardrail(rises, routed="adapter"), BOUND) == keeps(guardrail(rises), BOUND)


def test_many_items_that_keep_their_score_hold_but_not_where_the_base_is_mostly_wrong() -> None:
    """SCIENCE.md §7: 1,500 items and a base of 30 % may count by score, fewer or worse count by NLL alone."""
    rises = [0.5, 0.6] * 750
    assert keeps(guardrail(rises, base_score=1.0), BOUND)
    assert not keeps(guardrail(rises[:-1], base_score=1.0), BOUND)
    assert not keeps(guardrail(rises, base_score=0.0), BOUND)


def test_none_qualifies_keeps_the_best_target_and_says_so() -> None:
    choice = choose([candidate(1, 0.0, 1.0, [[1.0] * 20]), candidate(2, 1.0, 1.0, [[1.0] * 20])], BOUND)
    assert (choice.step, choice.guardrail_failed) == (2, True)


def row(name: str, route: str | None, classifier: str = "c") -> str:
    return json.dumps({"row": name, "route": route, "score": 0.5, "classifier": classifier}) + "\n"


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_an_item_goes_to_the_adapter_only_where_the_route_is_its_own(tmp_path: Path) -> None:
    decisions = read_decisions(write(tmp_path / "d.jsonl", row("a", "sql"), row("b", None), row("c", "other")))
    assert [decisions.routed_to(one, "sql") for one in "abc"] == ["adapter", "base", "base"]
    assert decisions.classifier_digest == "c"


def test_rows_without_a_decision_are_counted_and_refused(tmp_path: Path) -> None:
    decisions = read_decisions(write(tmp_path / "d.jsonl", row("a", "sql")))
    with pytest.raises(DecisionsInvalid, match="2 of 3 rows of eval have no routing decision"):
        decisions.require(["a", "b", "c"], "eval")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([row("a", None, "one"), row("b", None, "two")], "of 2 classifiers"),
        ([], "of 0 classifiers"),
        (["nonsense\n"], "line 1 is not JSON"),
        (['{"row": 1}\n'], "line 1 is no decision"),
        ([row("a", "sql"), row("a", None)], "line 2 contradicts"),
    ],
)
def test_decisions_that_cannot_be_trusted_are_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(DecisionsInvalid, match=message):
        read_decisions(write(tmp_path / "d.jsonl", *lines))


def test_a_missing_decisions_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DecisionsInvalid, match="cannot read"):
        read_decisions(tmp_path / "none.jsonl")


def test_an_earlier_step_wins_a_full_tie() -> None:
    first = candidate(3, 1.0, 0.5)
    assert choose([replace(first, step=9), first], BOUND).step == 3
