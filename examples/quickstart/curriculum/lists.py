"""Lists: join, split, reverse, sort, count, look up, pair, add, membership."""

import random

from ..lexicon import Lexicon
from ..wording import say
from .exchange import DELIMITERS, ORDINALS, Exchange


def rejoin(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Write a list with another sign between the items."""
    old, new = rng.sample(DELIMITERS, 2)
    items = lexicon.distinct(rng, rng.randint(2, 6))
    prompt = "[Join with|Put between the items|Separate by] {new}: {t}"
    return Exchange(say(prompt, rng, new=f'"{new}"', t=old.join(items)), new.join(items))


def reorder(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Reverse a short list, or order it by the alphabet or by size."""
    kind = rng.randrange(3)
    if kind == 0:
        items = lexicon.distinct(rng, rng.randint(2, 5))
        return Exchange(
            say("[Reverse|Backwards|From last to first]: {t}", rng, t=", ".join(items)), ", ".join(items[::-1])
        )
    if kind == 1:
        items = lexicon.distinct_words(rng, rng.randint(2, 4))
        return Exchange(
            say("[Sort|In alphabetical order|By the alphabet]: {t}", rng, t=", ".join(items)), ", ".join(sorted(items))
        )
    numbers = rng.sample(range(100), rng.randint(2, 5))
    prompt = "[Sort the numbers|From small to large|Smallest first]: {t}"
    return Exchange(say(prompt, rng, t=", ".join(map(str, numbers))), ", ".join(map(str, sorted(numbers))))


def count_items(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """How many items."""
    items = lexicon.distinct(rng, rng.randint(1, 9))
    prompt = "[How many items are there|Count the items|How many things are listed][?|:] {t}"
    return Exchange(say(prompt, rng, t=rng.choice((", ", " ", "; ")).join(items)), str(len(items)))


def item_at(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """The item at a place, under any separator."""
    delimiter = rng.choice(DELIMITERS)
    items = lexicon.distinct(rng, rng.randint(2, 7))
    place = rng.randrange(min(len(items), len(ORDINALS)))
    prompt = "[What is|Give|Take|Name] [the|only the] {n} [item|entry|part][?|:| of] {t}"
    return Exchange(say(prompt, rng, n=ORDINALS[place], t=delimiter.join(items)), items[place])


def membership(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Is an item in the list: yes or no."""
    items = lexicon.distinct(rng, rng.randint(2, 7))
    inside = rng.random() < 0.5
    item = rng.choice(items) if inside else lexicon.entity(rng)
    prompt = "[Is {i} in the list|Does the list contain {i}|Is {i} one of these|Can you find {i}][?|:| here?] {t}"
    return Exchange(say(prompt, rng, i=item, t=", ".join(items)), "yes" if item in items else "no")


def extend(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Add an item at the front or at the end."""
    items = lexicon.distinct(rng, rng.randint(1, 5))
    item = lexicon.entity(rng)
    if rng.random() < 0.5:
        return Exchange(
            say("[Append {i} to|Add {i} at the end of]: {t}", rng, i=item, t=", ".join(items)),
            ", ".join([*items, item]),
        )
    return Exchange(
        say("[Put {i} first in|Add {i} at the start of]: {t}", rng, i=item, t=", ".join(items)),
        ", ".join([item, *items]),
    )


def mentioned(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Which of the listed words does a sentence mention: matching a list with a text, in the order of the text."""
    items = lexicon.distinct(rng, rng.randint(3, 7))
    named = rng.sample(items, rng.randint(1, 2))
    sentence = [lexicon.word(rng) for _ in range(rng.randint(2, 6))]
    for offset, item in enumerate(named):
        sentence.insert(min(len(sentence), (offset + 1) * len(sentence) // (len(named) + 1) + offset), item)
    text = " ".join(sentence)
    order = sorted(set(named), key=sentence.index)
    prompt = "[Which of {l} [are|is] [named|mentioned|used] in|Find {l} in|From {l}, which stand in]: {t}"
    return Exchange(say(prompt, rng, l="(" + ", ".join(items) + ")", t=text), ", ".join(order))


def pair_up(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Join two lists item by item."""
    count = rng.randint(2, 4)
    left, right = lexicon.distinct(rng, count), lexicon.distinct(rng, count)
    sign = rng.choice(("=", ":", "-", " is ", "/", " -> ", "@", "~"))
    prompt = "[Pair|Match up|Put together] {l} [with|and] {r} [using|by|with the sign] {s}"
    answer = ", ".join(a + sign + b for a, b in zip(left, right, strict=True))
    return Exchange(say(prompt, rng, l=", ".join(left), r=", ".join(right), s=f'"{sign}"'), answer)
