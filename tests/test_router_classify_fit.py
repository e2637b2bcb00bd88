"""Fitting: what is refused, what is the same, and what every awkward set of rows still gives."""

from __future__ import annotations

import functools
import random
import string
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.errors import BadInput
from adapters.rows import LabelledText
from router.classify.classifier import MAX_EARLIER_TURNS, Classifier
from router.classify.confidence import Confidence
from router.classify.fit import fit_and_judge, fit_classifier
from router.classify.general import unclaimed_prompts
from router.classify.head import Head
from router.errors import ClassifierInvalid
from tests.classifier_rows import TALK, Meanings, base_rows, routes_rows

ROWS = routes_rows()
IN_SCOPE = {
    "sql": "select the price of albums where year is over 7",
    "booking": "please book a court for 3 people monday at 9",
    "regex": "lines with vowels before commas at least 2 times",
}
STRANGE = ["", " ", "\x00\x01", "zzzz qqqq", "你好，你今天怎么样", "🙂🙂🙂", "\ud800", "Ωmega"]


@pytest.fixture(scope="module")
def routes_only() -> Classifier:
    return fit_classifier(ROWS)


@pytest.fixture(scope="module")
def with_base() -> Classifier:
    return fit_classifier(ROWS + base_rows())


def row(text: str, label: str) -> LabelledText:
    return LabelledText(text, label)


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([], "no rows"),
        ([row("hi", "base"), row("ho", "oos")], "no route"),
        ([row("hi", "Bad Name"), row("ho", "auto")], "'Bad Name'.*'auto'"),
    ],
)
def test_rows_that_cannot_be_fitted_are_refused_with_all_problems(rows: list[LabelledText], problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        fit_classifier(rows)


@pytest.mark.parametrize("coverage", [0.0, 1.0, float("nan")])
def test_a_coverage_outside_0_and_1_is_refused(coverage: float) -> None:
    with pytest.raises(BadInput, match="coverage"):
        fit_classifier(ROWS, coverage=coverage)


def test_the_same_rows_in_any_order_give_the_same_digest(with_base: Classifier) -> None:
    shuffled = ROWS + base_rows()
    random.Random(1).shuffle(shuffled)
    assert fit_classifier(shuffled).digest == with_base.digest


def test_other_rows_give_another_digest(with_base: Classifier) -> None:
    assert fit_classifier(ROWS + base_rows()[1:]).digest != with_base.digest


def test_each_route_gets_its_texts(routes_only: Classifier, with_base: Classifier) -> None:
    for classifier in (routes_only, with_base):
        for route, text in IN_SCOPE.items():
            scores = classifier.scores(text)
            assert (scores.route, scores.abstains) == (route, False)


def test_talk_stays_on_the_base_though_no_negative_was_ever_seen(routes_only: Classifier) -> None:
    assert [text for text in TALK if not routes_only.scores(text).abstains] == []


@pytest.mark.parametrize("text", STRANGE)
def test_a_text_unlike_any_example_stays_on_the_base(routes_only: Classifier, with_base: Classifier, text: str) -> None:
    assert routes_only.scores(text).abstains
    assert with_base.scores(text).abstains


def test_the_top_route_is_never_the_base(with_base: Classifier) -> None:
    assert all(with_base.scores(text).route in with_base.routes for text in TALK)
    assert max(with_base.scores_per_route(TALK[0]).items(), key=lambda item: item[1])[0] == "base"


def test_oos_rows_count_as_base_rows(with_base: Classifier) -> None:
    oos = [row(text, "oos") for text in TALK]
    assert fit_classifier(ROWS + oos).digest == with_base.digest


def test_repeats_and_contradictions_are_counted() -> None:
    rows = [*ROWS, ROWS[0], row(ROWS[0].text, "booking")]
    summary = fit_classifier(rows).summary
    assert (summary["duplicates"], summary["texts_in_two_labels"]) == (1, 1)


def test_the_summary_shows_no_text(with_base: Classifier) -> None:
    shown = str(dict(with_base.summary))
    assert not [r.text for r in ROWS + base_rows() if r.text in shown]


def few(count: int) -> list[LabelledText]:
    return [r for route in IN_SCOPE for r in [r for r in ROWS if r.label == route][:count]]


AWKWARD = {
    "one route, one row": [row("select the age of users", "sql")],
    "one route": [r for r in ROWS if r.label == "sql"],
    "one route and the base": [r for r in ROWS if r.label == "sql"] + base_rows(),
    "two routes": [r for r in ROWS if r.label != "regex"],
    "one row a route": few(1),
    "two rows a route": few(2),
    "four rows a route": few(4),
    "one row against many": [r for r in ROWS if r.label == "sql"] + few(1),
    "the same texts in two routes": [row(r.text, label) for r in few(5) for label in ("left", "right")],
    "texts without a term": [row("!", "sql"), row("?", "sql"), row("\x00", "booking")],
    "many languages": [
        row(f"{text} {number}", route)
        for route, texts in {
            "greet": ["你好", "Привет друг", "¡hola!"],
            "count": ["eins zwei", "один два", "一二三"],
        }.items()
        for text in texts
        for number in range(3)
    ],
}


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_rows_give_a_classifier_that_answers_and_knows_nothing_of_gibberish(name: str) -> None:
    rows = AWKWARD[name]
    classifier = fit_classifier(rows)
    assert all(0 <= classifier.scores(r.text).confidence <= 1 for r in rows)
    assert classifier.scores("zzzz qqqq").abstains
    assert fit_classifier(rows[::-1]).digest == classifier.digest


@pytest.mark.parametrize("name", ["one route", "one route, one row", "one row a route", "four rows a route"])
def test_an_example_itself_is_routed_however_few_there_are(name: str) -> None:
    rows = AWKWARD[name]
    classifier = fit_classifier(rows)
    assert [(classifier.scores(r.text).route, classifier.scores(r.text).abstains) for r in rows] == [
        (r.label, False) for r in rows
    ]


def test_one_route_is_told_from_talk_by_similarity_alone() -> None:
    classifier = fit_classifier(AWKWARD["one route"])
    assert not classifier.scores(IN_SCOPE["sql"]).abstains
    assert all(classifier.scores(text).abstains for text in [*TALK, IN_SCOPE["regex"]])


def test_given_calibration_rows_set_the_threshold_and_are_never_fitted_on(routes_only: Classifier) -> None:
    fresh = [r for r in routes_rows(40, seed=9) if r not in ROWS]
    calibrated = fit_classifier(ROWS, calibration=[*fresh, ROWS[0], row("hey", "unknown-route"), row("hey", "base")])
    assert calibrated.summary["calibration_rows"] == len(fresh)
    assert calibrated.summary["calibration_negatives"] == 1
    assert isinstance(calibrated.head, Head)
    assert isinstance(routes_only.head, Head)
    assert (calibrated.head.weights == routes_only.head.weights).all()


def test_a_routes_name_counts_as_an_example_of_it() -> None:
    """No example holds `refund`; without the name it is a word like any other unknown one."""
    rows = [row("give me back what I paid", "refund-request"), row("open the door please", "door")]
    named, unnamed = (
        fit_classifier([replace(r, label=r.label if keep else r.label[::-1]) for r in rows]) for keep in (True, False)
    )
    assert named.scores("refund").route == "refund-request"
    assert named.scores_per_route("refund")["refund-request"] > 0.5
    assert (
        unnamed.scores_per_route("refund")["refund-request"[::-1]] < named.scores_per_route("refund")["refund-request"]
    )


def test_a_top_route_is_held_to_its_own_threshold(with_base: Classifier) -> None:
    strict = replace(with_base, own_thresholds={"sql": 99.0})
    assert (strict.scores(IN_SCOPE["sql"]).threshold, strict.scores(IN_SCOPE["sql"]).abstains) == (99.0, True)
    assert strict.scores(IN_SCOPE["booking"]) == with_base.scores(IN_SCOPE["booking"])


def test_what_is_unknown_in_a_text_leaves_its_confidence_where_the_exponent_says_so(with_base: Classifier) -> None:
    plain, lifted = (replace(with_base, confidence=Confidence(1.0, exponent)) for exponent in (0.0, 2.0))
    half_known = "select zzzz qqqq"
    assert lifted.scores(half_known).confidence > plain.scores(half_known).confidence
    assert lifted.scores(half_known).score == plain.scores(half_known).score
    assert lifted.scores_per_route(half_known)["sql"] == pytest.approx(lifted.scores(half_known).confidence)


@functools.cache
def small_classifier() -> Classifier:
    return fit_classifier(few(10) + base_rows())


TURNS = st.lists(st.sampled_from([*IN_SCOPE.values(), *TALK]), max_size=7)


@given(TURNS)
@settings(max_examples=40, deadline=None)
def test_the_newest_turn_that_does_not_abstain_decides(turns: list[str]) -> None:
    classifier = small_classifier()
    within_reach = [classifier.scores(turn) for turn in turns[: 1 + MAX_EARLIER_TURNS]]
    expected = next((s for s in within_reach if not s.abstains), (within_reach or [classifier.scores("")])[0])
    assert classifier.decide_text(turns) == expected


@given(st.text(alphabet=st.characters(codec=None), max_size=300), st.integers(1, 1000))
@settings(max_examples=40, deadline=None)
def test_no_text_crashes_a_decision_and_the_same_text_gets_the_same_one(text: str, times: int) -> None:
    classifier = small_classifier()
    scores = classifier.scores(text * times)
    assert scores == classifier.scores(text * times)
    assert 0 <= scores.confidence <= 1
    assert sum(classifier.scores_per_route(text).values()) == pytest.approx(1)


@pytest.fixture(scope="module")
def with_encoder() -> Classifier:
    return fit_classifier(ROWS + base_rows(), encoder=Meanings())


def test_an_encoder_finds_the_route_of_words_that_no_example_has(
    with_encoder: Classifier, with_base: Classifier
) -> None:
    """`query` and `reserve` are in no example; only their vectors are those of `select` and `book`."""
    for text, route in (("query", "sql"), ("reserve", "booking")):
        vector = Meanings().encode([text])[0]
        assert with_encoder.scores_per_route(text, vector)[route] > with_base.scores_per_route(text)[route]
        assert with_encoder.scores(text, vector).route == route
        assert (with_encoder.explain(text, vector).encoder or 0) > 0
    assert (with_encoder.encoder, with_base.encoder) == (Meanings.ref, None)


def test_each_text_is_encoded_once() -> None:
    encoder = Meanings()
    fresh = [r for r in routes_rows(40, seed=9) if r not in ROWS]
    fit_classifier(ROWS + ROWS, encoder=encoder)
    assert sorted(encoder.texts) == sorted([*(r.text for r in ROWS), *IN_SCOPE])  # routes' names too
    encoder.texts.clear()
    fit_classifier(ROWS, calibration=fresh, encoder=encoder)
    assert sorted(encoder.texts) == sorted([*(r.text for r in ROWS + fresh), *IN_SCOPE])


def test_each_turn_is_judged_with_its_own_vector(with_encoder: Classifier) -> None:
    turns = [TALK[0], IN_SCOPE["sql"], IN_SCOPE["booking"]]
    vectors = Meanings().encode(turns)
    assert with_encoder.decide_text(turns, vectors) == with_encoder.scores(turns[1], vectors[1])
    assert with_encoder.decide_text([]).abstains


def test_a_missing_or_misshaped_vector_is_refused(with_encoder: Classifier, with_base: Classifier) -> None:
    four = Meanings().encode(["select"])[0]
    for classifier, vector in ((with_encoder, None), (with_encoder, four[:3]), (with_base, four)):
        with pytest.raises(ClassifierInvalid, match="vector of shape"):
            classifier.scores("select", vector)


@pytest.mark.parametrize("name", AWKWARD)
def test_awkward_rows_with_an_encoder_give_a_classifier_too(name: str) -> None:
    rows = AWKWARD[name]
    classifier = fit_classifier(rows, encoder=Meanings())
    found = [classifier.scores(r.text, Meanings().encode([r.text])[0]) for r in rows]
    assert all(0 <= scores.confidence <= 1 for scores in found)


def test_a_classifier_knows_which_rows_it_was_fitted_on(with_base: Classifier) -> None:
    assert all(with_base.has_row(r.label, r.text) for r in ROWS + base_rows())
    assert all(with_base.has_row(r.label, f"  {r.text.upper()}\n") for r in ROWS)  # read as the row itself
    assert not with_base.has_row("sql", "never seen")
    assert not with_base.has_row("booking", next(r.text for r in ROWS if r.label == "sql"))


def test_an_explanation_names_the_words_that_weighed_most(with_base: Classifier) -> None:
    found = with_base.explain(IN_SCOPE["sql"])
    assert found.scores == with_base.scores(IN_SCOPE["sql"])
    assert "select" in [term for term, _ in found.terms]
    assert list(found.probabilities) == sorted(found.probabilities, key=lambda label: -found.probabilities[label])
    assert "sql answers" in found.reason
    assert "the base answers" in with_base.explain(TALK[0]).reason
    assert with_base.explain("").terms == ()


@pytest.mark.parametrize("examples", [4, 40])
def test_what_no_example_holds_anything_of_stays_on_the_base(examples: int) -> None:
    rows = routes_rows(examples)
    fitted = fit_classifier(rows, general=unclaimed_prompts(rows))
    draw = random.Random(5)
    letters = ["".join(draw.choices(string.ascii_lowercase, k=draw.randrange(3, 12))) for _ in range(300)]
    texts = [" ".join(letters[at : at + 3]) for at in range(0, 300, 3)]
    strange = ["Напиши стихотворение о зиме", "今日の天気はどうですか", "0x7f3a9c 0x1b2e", "ὁ δὲ ἀνεξέταστος βίος"]
    routed = [text for text in [*texts, *strange] if not fitted.scores(text).abstains]
    assert len(routed) <= 2


def test_rows_that_differ_in_case_and_blanks_alone_are_held_out_together() -> None:
    rows = routes_rows(20)
    loud = [LabelledText(row.text.upper() + " ", row.label) for row in rows]
    judged = fit_and_judge([*rows, *loud]).judged
    alone = fit_and_judge(rows).judged
    assert judged.accuracy == pytest.approx(alone.accuracy, abs=0.02)
    in_scope, before = (one.logits.max(axis=1).mean() for one in (judged, alone))
    assert in_scope == pytest.approx(before, rel=0.25)  # known rows would score far higher


def test_calibration_rows_that_the_fit_knows_already_are_refused() -> None:
    rows = routes_rows(5)
    with pytest.raises(BadInput, match="none of the 15 rows to calibrate on is of a route and new to the fit"):
        fit_classifier(rows, calibration=[LabelledText(row.text.title(), row.label) for row in rows])


def test_held_out_evidence_is_silent_where_serving_is() -> None:
    rows = [*routes_rows(10), *(LabelledText(sign * 3, "sql") for sign in "qxzjkv")]
    fitted = fit_and_judge(rows)
    said = {row.text: scores for row, scores in fitted.held_out}
    assert all(said[sign * 3].abstains for sign in "qxzjkv")
