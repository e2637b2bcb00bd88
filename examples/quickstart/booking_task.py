"""The `booking` task: a sentence that books a table -> JSON.

    Table for four under Marlow on Friday at 7 pm
    -> {"name": "Marlow", "people": 4, "day": "Friday", "time": "19:00"}

Entities: the guest's name. Numbers of people, week days and hours are closed sets, not entities.
"""

import random

from .booking_phrases import BANKS
from .entities import NAMES, Split, divide
from .rows import Row, begin_sentence
from .wording import choose_wording, fill_slots

_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_OUTPUT = '{"name": "{name}", "people": {people}, "day": "{day}", "time": "{time}"}'


def _draw_time(rng: random.Random) -> tuple[str, str]:
    """How a time between 5 and 10 in the evening is said, and how it is written."""
    hour, minute = rng.randint(5, 10), rng.choice(("00", "00", "30"))
    written = f"{hour + 12}:{minute}"
    if rng.random() < 0.25:
        return written, written
    return (f"{hour} pm" if minute == "00" else f"{hour}:{minute} pm"), written


def draw_booking(split: Split, rng: random.Random) -> Row:
    """One row of a split."""
    phrases = BANKS[split]
    template = choose_wording(rng.choice(phrases.sentences), rng)
    for part in ("under", "intro", "size", "count", "when", "hour"):
        template = template.replace("<" + part + ">", choose_wording(getattr(phrases, part), rng))
    template = begin_sentence(template) + rng.choice(phrases.endings)
    name, people, day = rng.choice(divide(NAMES, split)), rng.randint(2, 12), rng.choice(_DAYS)
    said_time, time = _draw_time(rng)
    said = {"n": name, "p": rng.choice((str(people), _NUMBERS[people - 1])), "d": day, "h": said_time}
    written = {"name": name, "people": str(people), "day": day, "time": time}
    return Row(fill_slots(template, said), fill_slots(_OUTPUT, written), template, frozenset({name}))
