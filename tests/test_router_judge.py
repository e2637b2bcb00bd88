"""The judge: memory and classifier on one request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adapters.exemplars import Exemplar
from adapters.rows import text_digest
from router.classify.classifier import Classifier
from router.classify.encoding import EncoderRef
from router.classify.features import Floats
from router.classify.fit import fit_classifier
from router.classify.judge import AsyncEncoder, Judge
from router.classify.memory import NEAR_DUPLICATE, Match, Memory, Recollection
from router.classify.weighing import THRESHOLD, probability_of, weigh
from router.errors import EncoderOverloaded, EncoderUnavailable
from router.types import Scores
from tests.classifier_rows import Meanings, base_rows, routes_rows

TABLE = "select the name of users where age is over 30"
OIL = "how often should i change the oil of my car"
LABELS = st.sampled_from(["sql", "oil", "base"])
SHARES = st.floats(0, 1)


# -- memory or classifier -------------------------------------------------------------------------------------------


@st.composite
def recollections(draw: st.DrawFn, similarity: st.SearchStrategy[float] = SHARES) -> Recollection:
    nearest = draw(similarity)
    evidence = nearest if nearest >= NEAR_DUPLICATE else draw(st.floats(0.75 * nearest, nearest))
    match = Match(draw(LABELS), nearest, "f" * 64, "operator", seen=False)
    choices = 1 if nearest >= NEAR_DUPLICATE else draw(st.integers(1, 10_000))
    return Recollection(match, evidence, draw(st.none() | SHARES), choices, draw(st.booleans()))


SCORES = st.builds(Scores, st.sampled_from(["sql", "oil"]), SHARES, st.floats(-5, 5), st.floats(-5, 5))


@given(SCORES | st.none(), recollections(st.floats(NEAR_DUPLICATE, 1)))
def test_a_near_duplicate_goes_where_its_exemplar_belongs_whatever_the_classifier_says(
    scores: Scores | None, found: Recollection
) -> None:
    assume((found.rival or 0) <= found.match.similarity)
    weighed = weigh(scores, found)
    assert weighed is not None
    assert weighed.route == found.match.label
    assert weighed.abstains == (found.match.label == "base")


@given(SCORES, recollections(), st.floats(NEAR_DUPLICATE, 1))
def test_the_classifier_decides_on_a_near_duplicate_of_what_it_was_fitted_on(
    scores: Scores, found: Recollection, rival: float
) -> None:
    assume(rival > found.match.similarity)
    assert weigh(scores, replace(found, rival=rival)) == scores


@given(SCORES | st.none(), recollections())
def test_memory_decides_where_it_is_sure_and_else_the_classifiers_scores_hold(
    scores: Scores | None, found: Recollection
) -> None:
    weighed = weigh(scores, found)
    if weighed is None or weighed.exemplar is None:
        assert weighed == scores
    else:
        assert (weighed.route, weighed.exemplar) == (found.match.label, found.match.text_digest)
        assert weighed.confidence == weighed.score == probability_of(scores, found) >= weighed.threshold == THRESHOLD


@given(SCORES, recollections(), SHARES, SHARES)
def test_memory_is_surer_with_more_evidence_less_so_with_a_nearer_rival_more_choices_or_a_surer_classifier(
    scores: Scores, found: Recollection, one: float, other: float
) -> None:
    low, high = sorted((one, other))
    assume(high - low > 0.01)
    found = replace(found, match=replace(found.match, label="another"))

    def probability(*, confidence: float = 0.5, **changes: float) -> float:
        return probability_of(replace(scores, confidence=confidence), replace(found, **changes))  # type: ignore[arg-type]  # fields by name

    assert probability(evidence=low) < probability(evidence=high)
    assert probability(rival=low) > probability(rival=high)
    assert probability(choices=1) > probability(choices=2)
    assert probability(confidence=0.1 + 0.8 * low) > probability(confidence=0.1 + 0.8 * high)


def test_where_both_mean_the_same_route_the_classifiers_scores_hold() -> None:
    scores = Scores("sql", 0.6, 2.0, 1.0)
    match = Match("sql", 0.95, "f" * 64, "operator", seen=False)
    assert weigh(scores, Recollection(match, 0.95, None, 1, has_seen=True)) == scores


# -- the judge ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted() -> Classifier:
    return fit_classifier(routes_rows(30) + base_rows())


def judge_of(classifier: Classifier | None, *exemplars: Exemplar) -> Judge:
    is_seen = classifier.has_row if classifier else lambda _label, _text: False
    return Judge(classifier, Memory.build(exemplars, is_seen=is_seen))


def decide(judge: Judge, *turns: str) -> Scores | None:
    return asyncio.run(judge.decide(turns))


def test_with_neither_classifier_nor_exemplars_there_is_nothing_to_judge_by() -> None:
    assert decide(judge_of(None), TABLE) is None


def test_a_route_is_reached_by_its_only_example_without_any_classifier_and_nothing_else_is() -> None:
    judge = judge_of(None, Exemplar("oil", OIL, "operator"))
    found, other = decide(judge, "how often should I change the oil in my car?"), decide(judge, "tell me a joke")
    assert found is not None
    assert (found.route, found.abstains, found.exemplar) == ("oil", False, text_digest(OIL))
    assert other is not None
    assert other.abstains


def test_a_route_that_the_classifier_does_not_know_is_reached_by_its_only_example(fitted: Classifier) -> None:
    judge = judge_of(fitted, Exemplar("oil", OIL, "operator"))
    found = decide(judge, "how often do i have to change the oil of a car")
    assert found is not None
    assert (found.route, found.abstains) == ("oil", False)
    assert decide(judge, TABLE) == fitted.scores(TABLE)


def test_a_correction_to_the_base_acts_at_once_and_ends_the_search_of_earlier_turns(fitted: Classifier) -> None:
    assert not fitted.scores(TABLE).abstains
    judge = judge_of(fitted, Exemplar("base", TABLE, "correction:operator"))
    earlier = "please book a table for 4 people friday at 8"
    assert not fitted.scores(earlier).abstains
    found = decide(judge, TABLE, earlier)
    assert found is not None
    assert (found.abstains, found.exemplar) == (True, text_digest(TABLE))


def test_an_earlier_turn_is_read_while_the_last_ones_abstain_at_most_three_back(fitted: Classifier) -> None:
    judge = judge_of(fitted, Exemplar("oil", OIL, "operator"))
    thanks = ["thanks, that was helpful"]
    for back in range(6):
        found = decide(judge, *thanks * back, OIL)
        assert found is not None
        assert (found.route == "oil") == (back <= 3)
        assert found.turn == (back if back <= 3 else 0)  # the turn that decided, the newest where none did


def test_no_turn_at_all_abstains(fitted: Classifier) -> None:
    for judge in (judge_of(fitted), judge_of(None, Exemplar("oil", OIL, "operator"))):
        found = decide(judge)
        assert found is not None
        assert found.abstains


def test_a_judge_names_its_classifier_and_all_exemplars_in_force(fitted: Classifier) -> None:
    seen = [Exemplar(row.label, row.text, "operator") for row in routes_rows(30)[:3]]
    judge = judge_of(fitted, *seen)
    assert (judge.classifier_digest, judge.exemplars_digest) == (fitted.digest, Memory.build(seen).digest)


class Letters:
    """An encoder of two numbers, for the event loop and beside it; it keeps what each batch was."""

    ref = EncoderRef("letters", "letters", "fp32", 2, 8)

    def __init__(self) -> None:
        self.batches: list[list[str]] = []

    def encode(self, texts: Sequence[str]) -> Floats:
        rows = np.array([[1.0, text.count("e")] for text in texts], dtype=np.float32)
        found: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return found


class Loop(Letters):
    async def encode(self, texts: Sequence[str]) -> Floats:  # type: ignore[override]  # awaited, as BatchedEncoder's
        self.batches.append(list(texts))
        return Letters.encode(self, texts)


def test_all_turns_of_a_request_share_one_batch() -> None:
    encoder = Loop()
    memory = Memory.build([Exemplar("oil", OIL, "operator")], encoder=Letters())
    asyncio.run(Judge(None, memory, encoder).decide(["one", "two", "three", "four", "five"]))
    assert encoder.batches == [["one", "two", "three", "four"]]


class Overloaded(Letters):
    async def encode(self, texts: Sequence[str]) -> Floats:  # type: ignore[override]  # as above
        raise EncoderOverloaded("256 texts wait for the encoder, at most 256 may")


class Failing(Letters):
    async def encode(self, texts: Sequence[str]) -> Floats:  # type: ignore[override]  # as above
        raise EncoderUnavailable("the encoder fails: RuntimeException")


def test_the_encoder_is_not_asked_for_vectors_that_nothing_reads(fitted: Classifier) -> None:
    encoder = Loop()
    seen = [Exemplar(row.label, row.text, "operator") for row in routes_rows(30)[:3]]
    memory = Memory.build(seen, is_seen=fitted.has_row, encoder=Letters())
    assert asyncio.run(Judge(fitted, memory, encoder).decide([TABLE])) == fitted.scores(TABLE)
    assert encoder.batches == []


@pytest.mark.parametrize("encoder", [Overloaded(), Failing()], ids=["overloaded", "failing"])
def test_an_encoder_that_gives_nothing_where_only_memory_uses_it_refuses_nobody(
    fitted: Classifier, encoder: AsyncEncoder
) -> None:
    memory = Memory.build([Exemplar("oil", OIL, "operator")], is_seen=fitted.has_row, encoder=Letters())
    for classifier in (fitted, None):
        found = asyncio.run(Judge(classifier, memory, encoder).decide([OIL]))
        assert found is not None
        assert (found.route, found.exemplar) == ("oil", text_digest(OIL))


def test_an_overloaded_encoder_that_the_classifier_needs_refuses() -> None:
    judge = Judge(fit_classifier(routes_rows(10), encoder=Meanings()), Memory.build(()), Overloaded())
    with pytest.raises(EncoderOverloaded):
        asyncio.run(judge.decide([TABLE]))


def test_where_the_encoder_that_the_classifier_needs_fails_nothing_is_judged_and_nothing_raised() -> None:
    judge = Judge(fit_classifier(routes_rows(10), encoder=Meanings()), Memory.build(()), Failing())
    assert asyncio.run(judge.decide([TABLE])) is None


def test_without_an_encoder_a_decision_never_waits(fitted: Classifier) -> None:
    deciding = judge_of(fitted, Exemplar("oil", OIL, "operator")).decide([OIL])
    with pytest.raises(StopIteration):
        deciding.send(None)  # a coroutine that waited for anything would yield here
