"""Texts by the terms they share: a cosine that needs no fit, over an inverted index.

Words: single ones, and pairs with at most one word between them (a text's two ends count as words), so that a
dropped word costs little. Characters: 3- and 4-grams inside padded words, so that a typo costs little.
Weight of a term: (1 + ln tf) · idf^¼ with idf = ln((1 + n) / (1 + df)) + 1 over the n texts of the index; a term that
none of them has counts with df = 0, so a text is as far from them as it says other things.

    similarity(q, d) = min(1, 2 size(d) / size(q)) · Σ_b share_b · (q_b · d_b) / (|q_b| |d_b|),  b in words, characters

with size = Σ (1 + ln tf)². The first factor is for a text that holds an exemplar among other things: from twice its
size on it is less and less like it, where a cosine alone falls with the square root only.
idf^¼: whole idf finds a paraphrase a little better, none at all finds a sentence with a word dropped better.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .features import Floats, Indices, Scalars, clip
from .spelling import WORD, character_terms

SIZES = (3, 4)
SHARES = (0.35, 0.65)  # of the words and of the characters; chosen on CLINC150 train and val
IDF_POWER = 0.25
LONGER = 2.0
_WORDS_APART = 0x5DEECE66D  # a word and an equal group of letters are two terms


@dataclass(frozen=True, slots=True)
class Terms:
    """A text's distinct terms: `keys` (n,), the words' first, and `weights` (n,) = 1 + ln tf.

    A key is Python's own hash of the term: another one in every process, so keys never leave theirs.
    """

    keys: Indices
    weights: Floats
    words: int

    @property
    def size(self) -> float:
        """Σ (1 + ln tf)²: near the number of distinct terms."""
        return float(self.weights @ self.weights)

    @property
    def blocks(self) -> Indices:
        """(n,) 0 for a word, 1 for characters."""
        return (np.arange(len(self.keys)) >= self.words).astype(np.int64)


def terms_of(text: str) -> Terms:
    """The terms of any text whatever; work is bounded as in `features.clip`."""
    clipped = clip(text)
    words, characters = Counter(_word_terms(clipped)), Counter(character_terms(clipped, SIZES))
    size = len(words) + len(characters)
    keys = np.fromiter(map(hash, itertools.chain(words, characters)), np.int64, size)
    keys[: len(words)] ^= _WORDS_APART
    counts = np.fromiter(itertools.chain(words.values(), characters.values()), np.float32, size)
    return Terms(keys, 1 + np.log(counts), len(words))


def _word_terms(text: str) -> list[str]:
    words = WORD.findall(text)
    if not words:
        return []
    ended = ["\n", *words, "\n"]
    pairs = [*itertools.pairwise(ended), *zip(ended, ended[2:], strict=False)]
    return words + [f"{first} {second}" for first, second in pairs]


@dataclass(frozen=True, slots=True)
class TermIndex:
    """Which texts hold a term: those of `keys[t]` (ascending) are `rows[starts[t]:starts[t + 1]]`.

    `values` (as `rows`) are the weights of the texts, of length 1 in each block, times the block's share; `sizes`
    (texts,) as above.
    """

    sizes: Scalars
    keys: Indices
    idf: Floats
    unseen_idf: float
    starts: Indices
    rows: Indices
    values: Floats

    def proportions(self, terms: Terms) -> Scalars:
        """(texts,) the first factor above, for a text of `terms` and each text of the index."""
        return np.minimum(1.0, LONGER * self.sizes / max(terms.size, 1.0))

    def cosines(self, terms: Terms) -> Scalars:
        """(texts,) the sum above, for a text of `terms` and each text of the index."""
        if not len(self.keys) or not len(terms.keys):
            return np.zeros(len(self.sizes))
        at = np.minimum(np.searchsorted(self.keys, terms.keys), len(self.keys) - 1)
        known = self.keys[at] == terms.keys
        weights = _unit(terms.weights * np.where(known, self.idf[at], self.unseen_idf), terms.blocks, 2)
        at, weights = at[known], weights[known]
        first, counts = self.starts[at], self.starts[at + 1] - self.starts[at]
        total = int(counts.sum())
        postings = np.arange(total) + np.repeat(first - (np.cumsum(counts) - counts), counts)
        gained = self.values[postings] * np.repeat(weights, counts)
        return np.bincount(self.rows[postings], gained, len(self.sizes)).astype(np.float64)


def build_index(texts: Sequence[Terms]) -> TermIndex:
    """The index of `texts`, which are rows 0, 1, … of it."""
    lengths, none = [len(text.keys) for text in texts], np.zeros(0, np.int64)
    keys, column = np.unique(np.concatenate([none, *(text.keys for text in texts)]), return_inverse=True)
    frequencies = np.bincount(column, minlength=len(keys))
    idf = _idf(len(texts), frequencies)
    blocks = 2 * np.repeat(np.arange(len(texts)), lengths) + np.concatenate([none, *(text.blocks for text in texts)])
    weights = np.concatenate([np.zeros(0, np.float32), *(text.weights for text in texts)]) * idf[column]
    values = _unit(weights, blocks, 2 * len(texts)) * np.array(SHARES)[blocks % 2]
    order = np.argsort(column, kind="stable")
    starts = np.concatenate([[0], np.cumsum(frequencies)])
    rows, ordered = (blocks // 2)[order].astype(np.int32), values[order].astype(np.float32)
    sizes = np.array([text.size for text in texts], dtype=np.float64)
    return TermIndex(sizes, keys, idf, float(_idf(len(texts), np.zeros(1))[0]), starts, rows, ordered)


def _idf(texts: int, frequencies: npt.NDArray[np.generic]) -> Floats:
    found: Floats = ((math.log(1 + texts) - np.log1p(frequencies) + 1) ** IDF_POWER).astype(np.float32)
    return found


def _unit(weights: Floats, blocks: Indices, count: int) -> Scalars:
    """`weights` (n,) divided by the length of the block each belongs to."""
    lengths = np.sqrt(np.bincount(blocks, weights.astype(np.float64) ** 2, count))
    return weights / lengths[blocks]
