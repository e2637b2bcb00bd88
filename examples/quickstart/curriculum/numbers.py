"""Numbers: sums, words for numbers, comparing, the clock, the calendar."""

import random

from ..lexicon import Lexicon
from ..wording import say
from .exchange import Exchange

UNITS = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
]
TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)


def number_word(number: int) -> str:
    """The English word for 0 to 99."""
    if number <= 20:
        return UNITS[number]
    return TENS[number // 10 - 2] + ("-" + UNITS[number % 10] if number % 10 else "")


def arithmetic(rng: random.Random, _: Lexicon) -> Exchange:
    """Add, take away or multiply small numbers."""
    first, second = rng.randint(0, 20), rng.randint(0, 20)
    wording, answer = rng.choice(
        (
            ("[{a} + {b}|{a} plus {b}|Add {a} and {b}]", first + second),
            ("[{a} - {b}|{a} minus {b}|Take {b} from {a}]", first - second),
            ("[{a} x {b}|{a} times {b}]", first * second),
        )
    )
    return Exchange(say("[What is |How much is |]" + wording, rng, a=str(first), b=str(second)), str(answer))


def spell_number(rng: random.Random, _: Lexicon) -> Exchange:
    """From digits to words and back."""
    number = rng.randint(0, 12) if rng.random() < 0.6 else rng.randint(0, 99)
    if rng.random() < 0.3:
        return Exchange(say("[Write|Spell|Say] {n} [in words|as a word]", rng, n=str(number)), number_word(number))
    wording = "[Write {n} [in digits|as a number|in figures]|{n} in digits|Which number is {n}?]"
    return Exchange(say(wording, rng, n=number_word(number)), str(number))


def compare(rng: random.Random, _: Lexicon) -> Exchange:
    """Does a comparison hold: yes or no."""
    first, second = rng.randint(0, 40), rng.randint(0, 40)
    if rng.random() < 0.2:
        second = first
    wording, holds = rng.choice(
        (
            ("[more than|greater than|above|over|bigger than|larger than|higher than]", first > second),
            ("[less than|fewer than|below|under|smaller than|lower than]", first < second),
            ("[at least|not less than|no fewer than]", first >= second),
            ("[at most|not more than|up to]", first <= second),
            ("[equal to|the same as|exactly]", first == second),
        )
    )
    return Exchange(say("Is {a} " + wording + " {b}?", rng, a=str(first), b=str(second)), "yes" if holds else "no")


def clock(rng: random.Random, _: Lexicon) -> Exchange:
    """Write an hour of the day on the clock of twenty-four hours."""
    hour, minute = rng.randint(1, 11), rng.choice((0, 0, 0, 15, 30, 45))
    part, shift = rng.choice(
        (("am", 0), ("pm", 12), ("in the morning", 0), ("in the evening", 12), ("in the afternoon", 12))
    )
    shown = rng.choice((str(hour), number_word(hour))) if minute == 0 else f"{hour}:{minute:02}"
    wording = (
        "[{t} on the 24 hour clock|{t} as hours and minutes|Which time is {t}?|Write the time {t} [in full|in digits]]"
    )
    return Exchange(say(wording, rng, t=f"{shown} {part}"), f"{hour + shift:02}:{minute:02}")


def calendar(rng: random.Random, _: Lexicon) -> Exchange:
    """The day or month after or before another."""
    names = rng.choice((DAYS, MONTHS))
    place, step = rng.randrange(len(names)), rng.choice((1, -1))
    wording = (
        ("[Which|What] [day|month] comes {s} {n}?") if rng.random() < 0.7 else "[What is|Name] the one {s} {n}[?|]"
    )
    wording = wording.replace("[day|month]", "day" if names is DAYS else "month")
    return Exchange(
        say(wording, rng, s="after" if step == 1 else "before", n=names[place]), names[(place + step) % len(names)]
    )


def repeat_times(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Say a word a number of times."""
    word, times = lexicon.entity(rng), rng.randint(1, 6)
    shown = rng.choice((str(times), number_word(times)))
    return Exchange(say("[Say|Write|Repeat] {w} {n} times", rng, w=word, n=shown), " ".join([word] * times))
