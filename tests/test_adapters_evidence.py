"""Evidence to JSON and back, and every way in which a file of evidence can be malformed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import evidence as evidence_module
from adapters.errors import BadInput
from adapters.evidence import METRICS, Evaluation, Evidence, Item, Score, parse_evidence
from tests.adapter_folders import evaluation, make_evidence

DIGEST = st.text("0123456789abcdef", min_size=64, max_size=64)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
SCORE = st.builds(Score, st.floats(0, 1), st.floats(0, 1e300), st.integers(1, 10**6))
ROUTED = st.sampled_from(["adapter", "base", None])
EVALUATION = st.builds(
    Evaluation,
    TEXT,
    DIGEST,
    st.sampled_from(METRICS),
    st.lists(st.builds(Item, TEXT, SCORE, SCORE, ROUTED), max_size=4, unique_by=lambda item: item.row).map(tuple),
    st.none() | TEXT,
)
JSON_OBJECT = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-(2**60), 2**60) | TEXT, max_size=3)
EVIDENCE = st.builds(
    Evidence, DIGEST, DIGEST, TEXT, EVALUATION, st.lists(EVALUATION, max_size=2).map(tuple), st.none() | DIGEST,
    st.booleans(), JSON_OBJECT, JSON_OBJECT,
)  # fmt: skip


def document() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(make_evidence("a" * 64, "b" * 64, target=evaluation(n=2)).to_json())
    return value


def refusal(value: object) -> str:
    with pytest.raises(BadInput) as caught:
        parse_evidence(value if isinstance(value, (str, bytes)) else json.dumps(value))
    return caught.value.message


@given(EVIDENCE)
@settings(max_examples=150, deadline=None)
def test_evidence_survives_the_way_through_json_with_its_digest(evidence: Evidence) -> None:
    read = parse_evidence(evidence.to_json())
    assert read == evidence
    assert read.digest == evidence.digest
    assert parse_evidence(evidence.to_json().encode()) == evidence


def test_the_digest_moves_with_every_item() -> None:
    one, other = document(), document()
    other["target"]["items"][1]["adapter"]["score"] = 0.5
    assert parse_evidence(json.dumps(one)).digest != parse_evidence(json.dumps(other)).digest


def test_every_problem_is_listed() -> None:
    value = document()
    value["weights_digest"] = "short"
    value["base_fingerprint"] = 5
    value["created"] = ""
    value["guardrails"][0]["metric"] = "vibes"
    value["target"]["items"][0]["base"]["score"] = 1.5
    value["target"]["items"][1]["adapter"] = None
    value["target"]["items"][1]["routed_to"] = "elsewhere"
    text = refusal(value)
    for expected in (
        "evidence.weights_digest is not a sha256 in hex", "evidence.base_fingerprint is 5", "evidence.created is ''",
        "guardrails[0].metric is 'vibes'", "target.items[0].base.score is 1.5", "target.items[1].adapter is NoneType",
        "target.items[1].routed_to is 'elsewhere'",
    ):  # fmt: skip
        assert expected in text


EDITS: list[tuple[str, Callable[[dict[str, Any]], object], str]] = [
    ("schema", lambda v: v.update(schema=2), "schema is 2, this version reads 1"),
    ("no schema", lambda v: v.pop("schema"), "schema is None"),
    ("row twice", lambda v: v["target"]["items"].append(v["target"]["items"][0]), "target.items names a row twice"),
    ("items an object", lambda v: v["target"].update(items={}), "target.items is dict, expected a list"),
    ("no guardrails", lambda v: v.pop("guardrails"), "guardrails is NoneType"),
    ("score true", lambda v: v["target"]["items"][0]["base"].update(score=True), "score is True"),
    ("score a text", lambda v: v["target"]["items"][0]["base"].update(score="1"), "score is '1'"),
    ("score below 0", lambda v: v["target"]["items"][0]["base"].update(score=-0.1), "score is -0.1"),
    ("nll below 0", lambda v: v["target"]["items"][0]["base"].update(nll=-1), "nll is -1"),
    ("nll astronomic", lambda v: v["target"]["items"][0]["base"].update(nll=10**400), "nll"),
    ("no tokens", lambda v: v["target"]["items"][0]["base"].update(tokens=0), "tokens is 0"),
    ("half a token", lambda v: v["target"]["items"][0]["base"].update(tokens=1.5), "tokens is 1.5"),
    ("selection a list", lambda v: v.update(selection=[]), "selection is list"),
    ("half a surrogate", lambda v: v["target"].update(name="\ud800"), "no canonical form"),
    ("half a surrogate aside", lambda v: v.update(probe={"x": "\udfff"}), "no canonical form"),
    ("classifier a number", lambda v: v.update(classifier_digest=1), "classifier_digest is 1"),
]  # fmt: skip


@pytest.mark.parametrize(("edit", "expected"), [one[1:] for one in EDITS], ids=[one[0] for one in EDITS])
def test_malformed_evidence_is_refused_with_the_place(edit: Callable[[dict[str, Any]], object], expected: str) -> None:
    value = document()
    edit(value)
    assert expected in refusal(value)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 5000, "1" + "0" * 400])
@pytest.mark.parametrize("place", ['"score":0.0', '"selection":{}', '"nll":1.0'])
def test_numbers_that_are_not_finite_are_refused_wherever_they_stand(number: str, place: str) -> None:
    text = make_evidence("a" * 64, "b" * 64).to_json()
    inside = f'"selection":{{"x":{number}}}' if "selection" in place else f"{place.split(':')[0]}:{number}"
    assert place in text
    if number == "1" + "0" * 400 and "selection" in place:
        return  # a whole number, however long, has a canonical form
    assert refusal(text.replace(place, inside, 1))


@pytest.mark.parametrize("text", ["", "[", "[]", "1", "null", '"x"', b"\xff\xfe\xff", "[" * 100_000, '{"schema":1}'])
def test_what_is_not_evidence_at_all_is_refused(text: str | bytes) -> None:
    assert refusal(text).startswith("evidence is")


def test_a_deep_nest_beside_the_items_is_refused_and_no_crash() -> None:
    for depth in range(100, 1000, 50):
        text = json.dumps({**document(), "selection": {"x": "NEST"}}).replace('"NEST"', "[" * depth + "]" * depth)
        try:
            assert parse_evidence(text).digest
        except BadInput as error:
            assert "canonical" in error.message or "not JSON" in error.message  # noqa: PT017  # either is right


def test_evidence_over_the_size_limit_is_refused_unparsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence_module, "MAX_EVIDENCE_BYTES", 100)
    assert refusal("[" * 101) == "evidence is over 100 bytes"


def test_hundreds_of_problems_are_counted() -> None:
    value = document()
    value["target"]["items"] = [None] * 100
    assert "; and " in refusal(value)
    assert len(refusal(value)) < 3000


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data())
@settings(max_examples=200, deadline=None)
def test_any_json_in_any_place_is_read_or_is_bad_input(data: st.DataObject) -> None:
    value: Any = document()
    at = value
    for _ in range(data.draw(st.integers(0, 4))):  # walk down to some place and put something there
        if not isinstance(at, (dict, list)) or not at:
            break
        key = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if data.draw(st.booleans()) or not isinstance(at[key], (dict, list)):
            at[key] = data.draw(JSON)
            break
        at = at[key]
    try:
        evidence = parse_evidence(json.dumps(value))
    except BadInput:
        return
    assert parse_evidence(evidence.to_json()) == evidence
