"""Features: equal to scikit-learn's TF-IDF on known terms, shrunk by unknown ones, safe on any text."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfVectorizer

from router.classify.features import (
    HEAD_CHARACTERS,
    TAIL_CHARACTERS,
    Features,
    build_features,
    clip,
    fit_features,
    word_terms,
)
from router.classify.spelling import character_terms
from tests.classifier_rows import base_rows, routes_rows

TEXTS = [row.text for row in routes_rows(10) + base_rows()] + ["Привет, как дела? 你好 世界", "a-b  c\td", "don't STOP"]
FITTED = fit_features(TEXTS, [True] * len(TEXTS))
WORDS = TfidfVectorizer(preprocessor=clip, token_pattern=r"\w+|[^\w\s]", ngram_range=(1, 2), sublinear_tf=True).fit(
    TEXTS
)
CHARACTERS = TfidfVectorizer(preprocessor=clip, analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit(TEXTS)

anything = st.one_of(
    st.text(max_size=300),
    st.text(alphabet=st.characters(codec=None), max_size=100),  # lone surrogates too
    st.lists(st.sampled_from([word for text in TEXTS for word in text.split()]), max_size=40).map(" ".join),
)


def dense(features: Features, text: str) -> tuple[np.ndarray, np.ndarray]:
    """The word and the character block as dense vectors."""
    sparse = features.transform(text)
    vector = np.zeros(features.size)
    vector[sparse.indices] = sparse.values
    words = len(features.words)
    return vector[:words], vector[words:]


def unit(vector: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(vector)
    return vector / length if length else vector


def test_vocabulary_and_idf_are_those_of_scikit_learn() -> None:
    terms = [*WORDS.get_feature_names_out(), *CHARACTERS.get_feature_names_out()]
    assert FITTED.terms() == terms
    assert [*FITTED.words.values(), *FITTED.characters.values()] == list(range(len(terms)))
    np.testing.assert_allclose(FITTED.idf[1:-1], np.concatenate([WORDS.idf_, CHARACTERS.idf_]), rtol=1e-12)


@settings(deadline=None)
@given(anything)
@example("")
@example(" \u00a0\x1f\x85 ")
@example("İstanbul ẞ ǅ ﬁ")
def test_direction_of_both_blocks_is_that_of_scikit_learn(text: str) -> None:
    """Known terms weigh alike; only the length of a block is ours. Tolerance: float32."""
    for ours, reference in zip(dense(FITTED, text), (WORDS, CHARACTERS), strict=True):
        np.testing.assert_allclose(unit(ours), reference.transform([text]).toarray()[0], atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(TEXTS))
def test_a_text_of_known_terms_has_blocks_of_length_one(text: str) -> None:
    for block in dense(FITTED, text):
        assert np.linalg.norm(block) == pytest.approx(1.0, abs=1e-6)


def test_unknown_terms_shrink_a_block_by_their_share_of_its_weight() -> None:
    """By hand: one text `cat` (n = 1): idf(cat) = ln(2/2) + 1 = 1, unseen idf = ln(2/1) + 1.

    Words of `cat zebra`: cat, zebra, `cat zebra`; two of three are unseen.
    """
    features = fit_features(["cat"], [True])
    unseen = math.log(2) + 1
    words, _ = dense(features, "cat zebra")
    assert words[features.words["cat"]] == pytest.approx(1 / math.sqrt(1 + 2 * unseen**2), abs=1e-6)


ODD = fit_features(["a!b", "\u00a0x y\u2028z", "w" * 60, "ﬁ İ", "? !", *TEXTS], [True] * (5 + len(TEXTS)))


@settings(deadline=None)
@given(anything, st.sampled_from([FITTED, ODD]))
@example("dog? dog dogs " + "w" * 60, ODD)
@example("qxz qxz qxzz ? !", ODD)
def test_a_word_that_was_spelt_beforehand_gives_what_its_letters_give(text: str, features: Features) -> None:
    letter_by_letter = replace(features, spelt={})
    ours, reference = features.transform(text), letter_by_letter.transform(text)
    assert (ours.indices.tolist(), ours.values.tolist()) == (reference.indices.tolist(), reference.values.tolist())


def test_a_word_with_a_term_that_no_column_has_is_spelt_when_it_comes() -> None:
    features = fit_features(["rare word", "word"], [False, False])
    assert list(features.spelt) == ["word"]
    assert list(build_features({"word": 1.0}, {" w": 1.0}, 2.0).spelt) == []


def test_no_pair_of_words_and_no_endless_word_is_spelt_beforehand() -> None:
    assert {"stop", "?", "как", "你好", "ﬁ"} <= ODD.spelt.keys() <= ODD.words.keys()
    assert "w" * 60 in ODD.words.keys() - ODD.spelt.keys()
    assert not [word for word in ODD.spelt if len(word.split()) != 1]


def test_a_repeated_term_counts_one_plus_the_logarithm_of_its_count() -> None:
    """By hand: words of `a a b`: a (tf 2), b, `a a`, `a b`, all idf 1 as n = df = 1."""
    features = fit_features(["a a b"], [True])
    words, _ = dense(features, "a a b")
    frequency = 1 + math.log(2)
    assert words[features.words["a"]] == pytest.approx(frequency / math.sqrt(frequency**2 + 3), abs=1e-6)


def test_a_term_of_one_text_is_kept_only_where_rare_terms_are_wanted() -> None:
    features = fit_features(["cat", "cat dog", "cat emu"], [False, False, True])
    assert list(features.words) == ["cat", "cat emu", "emu"]


@given(anything, st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_any_text_gives_finite_bounded_features(text: str, times: int) -> None:
    sparse = FITTED.transform(text * times)
    assert len(sparse.indices) == len(sparse.values) <= FITTED.size
    assert np.isfinite(sparse.values).all()
    assert np.linalg.norm(sparse.values) <= math.sqrt(2) + 1e-5


@pytest.mark.parametrize("sign", ["a", "İ", "?", "a ", "İ ", "\u0307"])
def test_a_text_of_one_sign_over_and_over_is_counted_to_its_end(sign: str) -> None:
    """Lower case makes two signs of İ."""
    sparse = FITTED.transform(sign * 1_000_000)
    assert np.isfinite(sparse.values).all()


def test_of_a_huge_text_only_the_ends_are_read() -> None:
    middle = "x" * 3_000_000
    assert clip("A" * HEAD_CHARACTERS + middle + "B" * TAIL_CHARACTERS) == f"{'a' * 2000} {'b' * 2000}"
    assert len(word_terms(clip("a " * 1_000_000))) <= HEAD_CHARACTERS + TAIL_CHARACTERS
    assert len(character_terms(clip(middle))) <= 4 * (HEAD_CHARACTERS + TAIL_CHARACTERS)
