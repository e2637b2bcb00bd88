"""Tokens to the columns of their character terms: those of the fitted words are looked up beforehand.

Nearly every token that people write is a word of the vocabulary. Its 20 to 30 character terms are then one lookup by
the token, where each term by itself would be a string to cut and one to find among tens of thousands.

A number stands for each distinct term: its column, or one that no column has. So terms are told apart, and counted,
whether the fit knows them or not.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Mapping, Sequence

SIZES = (2, 3, 4, 5)
LONGEST_LOOKED_UP = 40  # characters; what longer words cost in memory they never earn
WORD = re.compile(r"\w+|[^\w\s]")
NUMBER = "i"  # array's type code of the numbers in bytes: C int, as `numpy.intc`


def character_terms(text: str, sizes: Sequence[int] = SIZES) -> list[str]:
    """Character n-grams (n ascending in `sizes`) inside each word of a clipped text, which one space pads on each side.

    A padded word shorter than n counts once, as itself, for the first such n only (as in scikit-learn).
    """
    terms: list[str] = []
    for word in text.split():
        padded = f" {word} "
        length = len(padded)
        for size in sizes:
            if size >= length:
                terms.append(padded)
                break
            terms += [padded[start : start + size] for start in range(length - size + 1)]
    return terms


def spell_beforehand(words: Iterable[str], columns: Mapping[str, int]) -> dict[str, bytes]:
    """Word → the columns of its terms as bytes, for each single one of `words` whose terms all have a column."""
    found: dict[str, bytes] = {}
    for word in words:
        if len(word) <= LONGEST_LOOKED_UP and WORD.fullmatch(word):
            terms = character_terms(word)
            if all(term in columns for term in terms):
                found[word] = array(NUMBER, [columns[term] for term in terms]).tobytes()
    return found


def numbered(
    terms: Iterable[str], columns: Mapping[str, int], strangers: dict[str, int], first: int, step: int
) -> bytes:
    """The numbers of `terms` as bytes: their columns. `strangers` takes up those that have none, and numbers them
    `first`, `first + step` and so on.
    """
    get, add = columns.get, strangers.setdefault
    found = [add(term, first + step * len(strangers)) if (at := get(term)) is None else at for term in terms]
    return array(NUMBER, found).tobytes()
