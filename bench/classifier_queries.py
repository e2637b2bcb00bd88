"""A stored sentence as somebody might type it again: with a word dropped, or with typos."""

from __future__ import annotations

import itertools
import string

import numpy as np

TYPOS = ("substitute", "delete", "insert", "swap")


def drop_word(text: str, random: np.random.Generator) -> str:
    """`text` without one of its words (split at white space), each as likely. Raises `ValueError` for a single word."""
    words = text.split()
    if len(words) < 2:
        raise ValueError(f"{text!r} has no word to spare")
    dropped = int(random.integers(len(words)))
    return " ".join(words[:dropped] + words[dropped + 1 :])


def with_typos(text: str, count: int, random: np.random.Generator) -> str:
    """`text` with `count` typos at letters that are not neighbours, places and kinds drawn evenly.

    At a letter: another letter a–z instead of it, none, a letter a–z before it, or it and the next letter swapped
    (where none follows, or the same one: another letter instead). Raises `ValueError` where letters are too few.
    """
    letters = [at for at, letter in enumerate(text) if letter.isalpha()]
    if len(letters) < 3 * count:
        raise ValueError(f"{text!r} has {len(letters)} letters, {3 * count} are needed for {count} typos")
    while True:
        places = sorted(int(at) for at in random.choice(letters, count, replace=False))
        if all(after - before > 1 for before, after in itertools.pairwise(places)):
            break
    for at in reversed(places):
        text = _typo(text, at, TYPOS[int(random.integers(len(TYPOS)))], random)
    return text


def _typo(text: str, at: int, kind: str, random: np.random.Generator) -> str:
    following = text[at + 1 : at + 2]
    if kind == "delete":
        return text[:at] + text[at + 1 :]
    if kind == "insert":
        return text[:at] + _letter("", random) + text[at:]
    if kind == "swap" and following.isalpha() and following != text[at]:
        return text[:at] + following + text[at] + text[at + 2 :]
    return text[:at] + _letter(text[at].lower(), random) + text[at + 1 :]


def _letter(but: str, random: np.random.Generator) -> str:
    letters = string.ascii_lowercase.replace(but, "") if but else string.ascii_lowercase
    return letters[int(random.integers(len(letters)))]
