"""Say it again, quote it, pick the word beside another, replace, wrap: the circuits that every later task leans on."""

import random

from ..lexicon import Lexicon
from ..wording import say
from .exchange import BRACKETS, ORDINALS, Exchange


def repeat(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Say some words again."""
    text = " ".join(lexicon.entity(rng) for _ in range(rng.randint(1, 9)))
    prompt = say(
        "[Repeat|Say again|Copy|Echo|Write again][:| this:| the following:| these words:] {text}", rng, text=text
    )
    return Exchange(prompt, text)


def wrap(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Put signs around a word or around each word."""
    opening, closing = rng.choice(BRACKETS)
    words = lexicon.distinct(rng, rng.randint(1, 5))
    if rng.random() < 0.5:
        prompt = "[Put {o}{c} around|Wrap in {o}{c}|Surround with {o}{c}][:| this:] {text}"
        return Exchange(
            say(prompt, rng, o=opening, c=closing, text=" ".join(words)), opening + " ".join(words) + closing
        )
    prompt = "[Put {o}{c} around each word|Wrap every word in {o}{c}|Each word in {o}{c}]: {text}"
    answer = " ".join(opening + word + closing for word in words)
    return Exchange(say(prompt, rng, o=opening, c=closing, text=" ".join(words)), answer)


def neighbour(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """The word after, before or between given words."""
    words = lexicon.distinct(rng, rng.randint(4, 9))
    place = rng.randint(1, len(words) - 2)
    text, (before, word, after) = " ".join(words), words[place - 1 : place + 2]
    question, answer = rng.choice(
        (
            ("[Which word comes|What comes|What stands] [after|right after|just behind] {w}", after),
            ("[Which word comes|What comes|What stands] [before|right before|in front of] {w}", before),
            ("[Which word is|What is|What stands] between {b} and {a}", word),
            ("[Which words are|What is] around {w}", f"{before} {after}"),
        )
    )
    prompt = rng.choice((question + "? {t}", question + " in: {t}", "{t}\n" + question + "?"))
    return Exchange(say(prompt, rng, w=word, b=before, a=after, t=text), answer)


def nth_word(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """The word at a place counted from the front or the end."""
    words = lexicon.distinct(rng, rng.randint(2, 7))
    if rng.random() < 0.3:
        place, name = -1, rng.choice(("last", "final"))
    else:
        place = rng.randrange(min(len(words), len(ORDINALS)))
        name = ORDINALS[place]
    prompt = "[What is the|Give the|Tell me the|Write the|The] {n} word[| of| in| here]: {t}"
    return Exchange(say(prompt, rng, n=name, t=" ".join(words)), words[place])


def replace(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Swap one word of a phrase for another."""
    words = lexicon.distinct(rng, rng.randint(3, 7))
    new = lexicon.entity(rng)
    old = rng.choice(words)
    prompt = "[Replace {o} [with|by] {n}|Change {o} [to|into] {n}|Put {n} in place of {o}][:| in:| here:] {t}"
    answer = " ".join(new if word == old else word for word in words)
    return Exchange(say(prompt, rng, o=old, n=new, t=" ".join(words)), answer)


def drop(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Leave one word out."""
    words = lexicon.distinct(rng, rng.randint(3, 7))
    old = rng.choice(words)
    prompt = "[Leave out|Drop|Take out|Remove|Without] {o}: {t}"
    return Exchange(say(prompt, rng, o=old, t=" ".join(words)), " ".join(word for word in words if word != old))


def letter_case(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Write words with capitals, or without."""
    word = lexicon.word(rng)
    if rng.random() < 0.5:
        return Exchange(
            say("[Capitalize|With a capital letter|Start with a capital]: {w}", rng, w=word), word.capitalize()
        )
    return Exchange(say("[In lower case|No capitals|Small letters only]: {w}", rng, w=word.capitalize()), word)


def quoted_part(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Find the part of a text that stands inside signs."""
    opening, closing = rng.choice(BRACKETS)
    words = lexicon.distinct(rng, rng.randint(3, 7))
    start = rng.randrange(len(words))
    inside = words[start : start + rng.randint(1, 2)]
    text = " ".join([*words[:start], opening + " ".join(inside) + closing, *words[start + len(inside) :]])
    prompt = "[What is|What stands|Which words are|Give what is] [inside|within|in] {o}{c}[?|:] {t}"
    return Exchange(say(prompt, rng, o=opening, c=closing, t=text), " ".join(inside))
