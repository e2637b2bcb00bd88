"""The words that synthetic text is filled with: two committed lists drawn from the public-domain books, minus
reserved words.

`words.txt` and `names.txt` are made once from the books by `python -m examples.quickstart.lexicon DATA_FOLDER`, so
that everything else here is the same with and without the books. Words that the three tasks or the guardrail use as
entities (`entities.py`) are left out of both lists, so a base trained on them has met no task entity in a slot
(prose of the books may still contain some).
"""

import argparse
import gzip
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .entities import reserved_words

HERE = Path(__file__).parent
_CONSONANTS = (
    "b",
    "c",
    "d",
    "f",
    "g",
    "h",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "w",
    "z",
    "br",
    "st",
    "tr",
    "pl",
    "ch",
    "sh",
)
_VOWELS = ("a", "e", "i", "o", "u", "a", "e", "o", "ai", "ea", "oo")
_ENDINGS = ("", "", "n", "r", "l", "s", "t", "m", "k", "nd", "rk")


@dataclass(frozen=True)
class Lexicon:
    """Ordinary lower-case words and capitalised names; every draw takes the caller's generator."""

    words: tuple[str, ...]
    names: tuple[str, ...]
    listed_words: float = 0.7
    listed_names: float = 0.6

    def word(self, rng: random.Random) -> str:
        """One lower-case word: `listed_words` of them from the list, the others invented."""
        return rng.choice(self.words) if rng.random() < self.listed_words else invent_word(rng)

    def name(self, rng: random.Random) -> str:
        """One capitalised name: `listed_names` of them from the list, the others invented."""
        return rng.choice(self.names) if rng.random() < self.listed_names else invent_word(rng).capitalize()

    def entity(self, rng: random.Random) -> str:
        """A word, a name, or rarely a number: whatever may stand in an open slot."""
        draw = rng.random()
        if draw < 0.65:
            return self.word(rng)
        return self.name(rng) if draw < 0.92 else str(rng.randint(0, 999))

    def distinct(self, rng: random.Random, count: int) -> list[str]:
        """`count` different entities."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.entity(rng)] = None
        return list(found)

    def distinct_words(self, rng: random.Random, count: int) -> list[str]:
        """`count` different lower-case words."""
        found: dict[str, None] = {}
        while len(found) < count:
            found[self.word(rng)] = None
        return list(found)


def invent_word(rng: random.Random) -> str:
    """A pronounceable word of two or three syllables, almost surely not English and never a reserved word."""
    reserved = reserved_words()
    while True:
        syllables = rng.choice((1, 2, 2, 2, 3))
        word = "".join(rng.choice(_CONSONANTS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(_ENDINGS)
        if len(word) > 2 and word not in reserved:
            return word


@cache
def load_lexicon() -> Lexicon:
    """The committed lists."""
    words = (HERE / "words.txt").read_text(encoding="utf-8").split()
    names = (HERE / "names.txt").read_text(encoding="utf-8").split()
    return Lexicon(tuple(words), tuple(names))


def book_files(data_folder: Path) -> list[Path]:
    """The book files in reading order; an empty list where the folder is absent."""
    return sorted((data_folder / "books").glob("books_*.txt.gz"))


def read_paragraphs(path: Path) -> Iterator[str]:
    """The paragraphs of one book file, white space folded."""
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as stream:
        for line in stream:
            paragraph = " ".join(line.split())
            if paragraph and not paragraph.startswith("#"):
                yield paragraph


def extract_lists(data_folder: Path, word_count: int, name_count: int) -> tuple[list[str], list[str]]:
    """The most frequent plain words and, by mid-sentence capitals, the most frequent names of the books."""
    lower: Counter[str] = Counter()
    capital: Counter[str] = Counter()
    for path in book_files(data_folder):
        for paragraph in read_paragraphs(path):
            lower.update(re.findall(r"(?<![A-Za-z'])[a-z]{3,10}(?![A-Za-z'])", paragraph))
            capital.update(re.findall(r"(?<=[a-z,] )[A-Z][a-z]{2,9}(?![A-Za-z'])", paragraph))
    reserved = reserved_words()
    words = [word for word, seen in lower.most_common() if word not in reserved and capital[word.capitalize()] < seen]
    names = [
        name for name, seen in capital.most_common() if name.lower() not in reserved and lower[name.lower()] * 5 < seen
    ]
    return sorted(words[:word_count]), sorted(names[:name_count])


def main() -> None:
    """Write words.txt and names.txt beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="the folder that holds books/")
    words, names = extract_lists(parser.parse_args().data, word_count=9000, name_count=2000)
    (HERE / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    (HERE / "names.txt").write_text("\n".join(names) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
