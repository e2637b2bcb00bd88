"""Everyday requests, each kind with its own notation: sentence in many wordings to a fixed form.

These teach what the quickstart's tasks need in general (find the roles in a sentence, write them in a notation that
the prompt does not show) on other subjects, other wordings and other notations.
"""

import random
from dataclasses import dataclass

from ..lexicon import Lexicon
from ..wording import choose_wording, fill_slots
from .exchange import Exchange
from .forms import STYLES, draw_shape, fill_shape
from .frame_list import FRAMES, Frame
from .numbers import DAYS, MONTHS, number_word

LEADS = (
    "[|hello, |hi there, |now |so |well, |listen: |next: |my wish: |as said, |today |one more thing: |kindly "
    "|do this: |it is time: ]"
)
TAILS = (
    "[|, thanks|, thank you|, will you|, friend|, if possible|, as always|, right away|. That is all|. "
    "Thanks a lot|. It matters to me]"
)


@dataclass(frozen=True)
class Slot:
    """How a value is said in the sentence and how it is written in the answer."""

    said: str
    written: str


def draw_slot(kind: str, rng: random.Random, lexicon: Lexicon) -> Slot:
    """A value for a slot of the kind `word`, `name`, `day`, `month`, `count`, `amount` or `hour`."""
    if kind == "count":
        number = rng.randint(1, 12)
        return Slot(rng.choice((str(number), number_word(number))), str(number))
    if kind == "hour":
        hour, (part, shift) = rng.randint(1, 11), rng.choice((("am", 0), ("pm", 12)))
        return Slot(f"{hour} {part}", f"{hour + shift:02}:00")
    if kind == "amount":
        text = str(rng.randint(1, 999))
    elif kind in ("day", "month"):
        text = rng.choice(DAYS if kind == "day" else MONTHS)
    else:
        text = lexicon.word(rng) if kind == "word" else lexicon.name(rng)
    return Slot(text, text)


def draw_slots(frame: Frame, rng: random.Random, lexicon: Lexicon) -> dict[str, Slot]:
    """A value for every slot of a frame."""
    return {name: draw_slot(kind, rng, lexicon) for name, kind in frame.slots.items()}


def _disturb(wording: str, rng: random.Random, lexicon: Lexicon) -> str:
    """Replace some of the words that carry the slots by other words: an unknown wording must not hide the slots."""
    return " ".join(word if "{" in word or rng.random() > 0.12 else lexicon.word(rng) for word in wording.split(" "))


def _sentence(frame: Frame, slots: dict[str, Slot], rng: random.Random, lexicon: Lexicon) -> tuple[str, str]:
    """A wording of the frame, filled, and the notation that goes with that wording."""
    wording, notation = rng.choice(frame.wordings)
    wording = choose_wording(wording, rng)
    if rng.random() < 0.25:
        wording = _disturb(wording, rng, lexicon)
    if rng.random() < 0.3:
        lead, tail = choose_wording(LEADS, rng), choose_wording(TAILS, rng)
        wording = lead + wording + tail
    text = fill_slots(wording, {name: slot.said for name, slot in slots.items()})
    return text[0].upper() + text[1:] + rng.choice(("", ".", ".", "!")), notation


def frame_notation(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Answer in the notation that belongs to this kind of request."""
    frame = rng.choice(FRAMES)
    slots = draw_slots(frame, rng, lexicon)
    text, notation = _sentence(frame, slots, rng, lexicon)
    return Exchange(text, fill_slots(notation, {name: slot.written for name, slot in slots.items()}))


def frame_shape(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Answer in a shape that the prompt shows."""
    frame = rng.choice(FRAMES)
    slots = draw_slots(frame, rng, lexicon)
    text, notation = _sentence(frame, slots, rng, lexicon)
    keys = [name for name in slots if "{" + name + "}" in notation]
    shape = draw_shape(rng, lexicon, rng.sample(keys, rng.randint(1, len(keys))))
    return Exchange(
        f"{text}\n{rng.choice(('Form', 'Shape', 'Write'))}: {shape}",
        fill_shape(shape, {key: slots[key].written for key in keys}),
    )


def frame_record(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Answer with a record in a named style, or with one field."""
    frame = rng.choice(FRAMES)
    slots = draw_slots(frame, rng, lexicon)
    text, notation = _sentence(frame, slots, rng, lexicon)
    record = {name: slot.written for name, slot in slots.items() if "{" + name + "}" in notation}
    if rng.random() < 0.4:
        key = rng.choice(tuple(record))
        return Exchange(f"{text}\n{key}?", record[key])
    style = rng.choice(tuple(STYLES))
    return Exchange(f"{text}\nAs {style}: {', '.join(record)}", STYLES[style](record))
