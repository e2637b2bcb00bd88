"""Episodic memory: nearest exemplars, what they say for their labels, and what is forgotten."""

from __future__ import annotations

import itertools
import json
import math
import random
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.exemplars import Exemplar
from adapters.rows import sha256_json, text_digest
from router.classify.encoding import EncoderRef
from router.classify.entries import RIVALS_PER_LABEL
from router.classify.features import Floats
from router.classify.memory import Memory, Recollection
from router.classify.terms import IDF_POWER, LONGER, SHARES, build_index, terms_of
from router.classify.vectors import build_vector_index
from tests.test_router_classify_data import DATA, needs

OIL = Exemplar("oil", "how often should i change the oil of my car", "operator")
PIN = Exemplar("pin", "please change the pin of my card", "operator")
CARD = Exemplar("pin", "i need another number for my bank card", "operator")
RAIN = Exemplar("rain", "will it rain in paris tomorrow", "file rain.jsonl")
SOME = (OIL, PIN, CARD, RAIN)


def recollect(memory: Memory, text: str) -> Recollection:
    found = memory.recollect(text)
    assert found is not None
    return found


# -- similarity -----------------------------------------------------------------------------------------------------


def word_terms(text: str) -> list[str]:
    words = [word for word in text.split(" ") if word]
    ended = ["", *words, ""]
    pairs = [(ended[i], ended[j]) for i, j in itertools.combinations(range(len(ended)), 2) if j - i <= 2]
    return words + [f"{first}|{second}" for first, second in pairs if words]


def character_terms(text: str) -> list[str]:
    terms: list[str] = []
    for word in text.split():
        padded = f" {word} "
        sizes = (3, 4) if len(padded) > 3 else (len(padded),)
        terms += [padded[at : at + size] for size in sizes for at in range(len(padded) - size + 1)]
    return terms


def by_formula(query: str, texts: Sequence[str]) -> list[float]:
    """The formula at the head of terms.py, term by term."""
    found = [0.0] * len(texts)
    for extract, share in zip((word_terms, character_terms), SHARES, strict=True):
        rows = [Counter(extract(text)) for text in (query, *texts)]
        texts_with = Counter(term for row in rows[1:] for term in row)
        mine, *others = (
            {term: (1 + math.log(tf)) * idf(texts_with[term], len(texts)) for term, tf in row.items()} for row in rows
        )
        for at, other in enumerate(others):
            length = math.hypot(*mine.values()) * math.hypot(*other.values())
            found[at] += share * sum(mine[term] * other.get(term, 0) for term in mine) / length if length else 0.0
    return [one * min(1, LONGER * size(text) / max(1, size(query))) for one, text in zip(found, texts, strict=True)]


def idf(texts_with_it: int, texts: int) -> float:
    return float((math.log((1 + texts) / (1 + texts_with_it)) + 1) ** IDF_POWER)


def size(text: str) -> float:
    return sum((1 + math.log(tf)) ** 2 for part in (word_terms, character_terms) for tf in Counter(part(text)).values())


SENTENCES = st.lists(st.sampled_from(["ab", "abc", "abcd", "bcde", "xyz", "car", "card"]), max_size=7).map(" ".join)


@given(SENTENCES, st.lists(SENTENCES, min_size=1, max_size=5))
def test_similarity_is_the_formula_it_states(query: str, texts: list[str]) -> None:
    index, terms = build_index([terms_of(text) for text in texts]), terms_of(query)
    found = index.cosines(terms) * index.proportions(terms)
    assert found == pytest.approx(by_formula(query, texts), abs=1e-5)  # float32 weights


@given(SENTENCES.filter(bool), st.lists(SENTENCES, max_size=4))
def test_a_stored_text_is_fully_like_itself_also_in_capitals_and_with_other_spaces(
    text: str, others: list[str]
) -> None:
    memory = Memory.build([Exemplar("it", text, "operator"), *(Exemplar("other", one, "operator") for one in others)])
    changed = f"  {text.upper().replace(' ', '   ')}\n"
    assert memory.nearest(changed, k=1)[0].similarity == pytest.approx(1, abs=1e-5)


def test_a_text_that_holds_an_exemplar_among_other_things_is_less_like_it_than_their_cosine() -> None:
    memory = Memory.build(SOME)
    stuffed = " ".join(["tell me about the history of the roman empire and its emperors"] * 4 + [OIL.text])
    match = next(one for one in memory.nearest(stuffed) if one.text_digest == text_digest(OIL.text))
    assert match.similarity < 0.5 * memory.index.cosines(terms_of(stuffed)).max()


NASTY = [
    "",
    " \n\t ",
    "\x00\x01\xff" * 50,
    "\ud800 \udfff lone halves",
    "我想订一张去巴黎的机票",
    "я хочу заказать билет",
    "أريد حجز تذكرة",
    "👩‍👩‍👧‍👦🏳️‍🌈" * 20,
    "'; DROP TABLE examples; --",
    "word " * 2_000_000,
    "a" * 10_000_000,
]


@pytest.mark.parametrize("text", NASTY, ids=range(len(NASTY)))
def test_no_text_stops_memory(text: str) -> None:
    require_sound(Memory.build(SOME), text)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(exclude_categories=()), max_size=300), st.lists(st.text(max_size=60), max_size=5))
def test_whatever_the_texts_similarities_stay_between_0_and_1(query: str, texts: list[str]) -> None:
    require_sound(Memory.build([Exemplar("it", text, "operator") for text in texts]), query)


def require_sound(memory: Memory, text: str) -> None:
    found = [match.similarity for match in memory.nearest(text)]
    assert found == sorted(found, reverse=True)
    assert all(0 <= one <= 1.00001 for one in found)
    recollection = memory.recollect(text)
    assert recollection is None or 0 < recollection.evidence <= 1.00001


# -- single exemplars among thousands -----------------------------------------------------------------------------


@needs("clinc150/data_full.json")
def test_a_single_sentence_among_5000_is_found_with_a_word_dropped_and_with_two_typos() -> None:
    """CLINC150 train, one sentence a route. Asked for: 0.98 and 0.96; 2,500 queries gave 0.980 and 0.988."""
    rows = json.loads((DATA / "clinc150" / "data_full.json").read_text(encoding="utf-8"))["train"]
    rng = random.Random(0)
    texts = rng.sample(sorted({text for text, _ in rows}), 5_000)
    memory = Memory.build([Exemplar(f"route-{at}", text, "operator") for at, text in enumerate(texts)])
    for change, wanted in ((with_a_word_dropped, 0.96), (with_two_typos, 0.96)):
        found = [
            recollect(memory, change(texts[at], rng)).match.label == f"route-{at}"
            for at in rng.sample(range(5_000), 500)
        ]
        assert np.mean(found) >= wanted  # for 500 queries at 0.98 the standard error is 0.006


def with_a_word_dropped(text: str, rng: random.Random) -> str:
    words = text.split()
    if len(words) > 1:
        del words[rng.randrange(len(words))]
    return " ".join(words)


def with_two_typos(text: str, rng: random.Random) -> str:
    for _ in range(2):
        at, letter = rng.randrange(len(text)), rng.choice(string.ascii_lowercase)
        kind = rng.choice(["replaced", "left out", "put in", "swapped"])
        if kind == "swapped":
            text = text[:at] + text[at : at + 2][::-1] + text[at + 2 :]
        else:
            text = text[:at] + ("" if kind == "left out" else letter) + text[at + (kind != "put in") :]
    return text


# -- who speaks -----------------------------------------------------------------------------------------------------


def test_an_exemplar_that_the_fit_has_seen_is_a_rival_and_speaks_for_nobody() -> None:
    memory = Memory.build(SOME, is_seen=lambda label, _text: label == "pin")
    found = recollect(memory, PIN.text)
    assert (found.match.label, found.has_seen) == ("oil", True)
    assert found.rival == pytest.approx(1)


def test_a_correction_speaks_also_where_the_fit_has_seen_it() -> None:
    corrected = Exemplar("base", "will it rain on my wedding", "correction:operator")
    memory = Memory.build([*SOME, corrected], is_seen=lambda _label, _text: True)
    assert recollect(memory, corrected.text).match.label == "base"


def test_memory_costs_nothing_where_the_fit_has_seen_everything() -> None:
    memory = Memory.build(SOME, is_seen=lambda _label, _text: True)
    assert (memory.entries, memory.recollect(OIL.text)) == ((), None)
    assert memory.digest == Memory.build(SOME).digest


def test_of_a_route_with_many_seen_examples_a_few_are_kept() -> None:
    many = [Exemplar("talk", f"seen sentence number {n}", "operator") for n in range(50)]
    memory = Memory.build([*many, OIL], is_seen=lambda label, _text: label == "talk")
    assert Counter(entry.label for entry in memory.entries) == {"talk": RIVALS_PER_LABEL, "oil": 1}


@pytest.mark.parametrize("order", [1, -1])
def test_of_texts_that_differ_in_capitals_only_a_correction_holds_over_an_example(order: int) -> None:
    pair = [Exemplar("sql", "Show Me", "operator"), Exemplar("base", "show me", "correction:operator")]
    assert recollect(Memory.build(pair[::order]), "show me").match.label == "base"


def test_of_two_corrections_alike_the_later_one_holds() -> None:
    pair = [Exemplar("sql", "Show Me", "correction:operator"), Exemplar("regex", "show me", "correction:operator")]
    assert recollect(Memory.build(pair), "show me!").match.label == "regex"
    assert recollect(Memory.build(pair[::-1]), "show me!").match.label == "sql"


def test_evidence_is_three_quarters_of_the_nearest_and_a_quarter_of_the_second_nearest_of_a_label() -> None:
    memory, text = Memory.build(SOME), "change the number of my card"
    nearest = {label: [m.similarity for m in memory.nearest(text, k=4) if m.label == label] for label in ("pin", "oil")}
    found = recollect(memory, text)
    assert found.match.label == "pin"
    assert found.evidence == pytest.approx(0.75 * nearest["pin"][0] + 0.25 * nearest["pin"][1], abs=1e-5)
    assert found.rival == pytest.approx(nearest["oil"][0])
    assert found.choices == 2


def test_a_near_duplicate_counts_as_one_choice_however_many_exemplars_its_label_has() -> None:
    assert recollect(Memory.build(SOME), CARD.text).choices == 1


def test_a_near_duplicate_is_not_outweighed_by_a_label_with_two_likely_ones() -> None:
    single = [Exemplar("pin", PIN.text, "operator"), Exemplar("pin", "something else altogether", "operator")]
    twins = [Exemplar("card", f"please change the pin of {whose} card", "operator") for whose in ("any", "the")]
    assert recollect(Memory.build([*single, *twins]), PIN.text).match.label == "pin"


# -- building and forgetting ----------------------------------------------------------------------------------------


def test_the_digest_is_of_the_pairs_whatever_their_order_and_source() -> None:
    pairs = sorted([one.label, text_digest(one.text)] for one in SOME)
    again = Memory.build([Exemplar(one.label, one.text, "another") for one in reversed(SOME)])
    assert Memory.build(SOME).digest == again.digest == sha256_json(pairs)
    assert Memory.build(()).digest is None


@given(st.lists(st.sampled_from(SOME), unique=True), st.lists(st.sampled_from(SOME), unique=True))
def test_what_is_built_on_an_earlier_memory_is_what_is_built_anew(first: list[Exemplar], then: list[Exemplar]) -> None:
    built, anew = Memory.build(then, before=Memory.build(first)), Memory.build(then)
    assert built.digest == anew.digest
    for one in SOME:
        assert built.nearest(one.text) == anew.nearest(one.text)
    assert set(built.terms) == {text_digest(one.text) for one in then}


def test_memory_holds_no_text() -> None:
    assert not any(word in repr(Memory.build([RAIN])) for word in ("rain in", "paris", "tomorrow"))


# -- vectors --------------------------------------------------------------------------------------------------------


class Topics:
    """An encoder with a vector for each of a few topics, and a memory of what it was asked for."""

    def __init__(self, name: str = "topics") -> None:
        self.ref = EncoderRef(name, name, "fp32", 3, 8)
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Floats:
        self.asked += texts
        rows = [[1.0, "oil" in text or "engine" in text, "rain" in text or "umbrella" in text] for text in texts]
        found: Floats = np.array(rows, dtype=np.float32).reshape(len(texts), 3)
        found /= np.linalg.norm(found, axis=1, keepdims=True)
        return found


def test_a_paraphrase_without_a_word_in_common_is_found_by_its_vector() -> None:
    topics = Topics()
    memory = Memory.build(SOME, encoder=topics)
    found = memory.recollect("umbrella?", topics.encode(["umbrella?"])[0])
    assert found is not None
    assert found.match.label == "rain"
    assert recollect(memory, "umbrella?").match.label != "rain"


def test_only_texts_that_are_new_to_this_encoder_are_encoded() -> None:
    topics, others = Topics(), Topics("others")
    first = Memory.build(SOME[:2], encoder=topics)
    second = Memory.build(SOME, encoder=topics, before=first)
    assert topics.asked == [one.text for one in SOME]
    Memory.build(SOME, encoder=others, before=second)
    assert sorted(others.asked) == sorted(one.text for one in SOME)


def test_a_vector_index_takes_unrelated_texts_for_unrelated_whatever_cosine_its_encoder_gives_them() -> None:
    """Closed form: with cosine 0.6 between labels, a cosine c counts as (c − 0.6) / 0.4."""
    vectors = [np.array(row, dtype=np.float32) for row in ([1, 0], [0.6, 0.8])]
    index = build_vector_index(vectors, ["a", "b"])
    assert index.similarities(vectors[0]) == pytest.approx([1, 0], abs=1e-6)
    middle = np.array([math.cos(0.5 * math.acos(0.6)), math.sin(0.5 * math.acos(0.6))], dtype=np.float32)
    expected = (math.cos(0.5 * math.acos(0.6)) - 0.6) / 0.4
    assert index.similarities(middle) == pytest.approx([expected, expected], abs=1e-5)
