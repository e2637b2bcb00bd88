"""How often each kind of task occurs, and how exchanges become conversations."""

import random
from dataclasses import dataclass
from typing import Literal

from ..lexicon import Lexicon
from . import cabinets, copying, forms, frames, lists, numbers, numbers_of_lists, patterns, smalltalk
from .exchange import Exchange, Maker

Role = Literal["system", "user", "assistant", "prose"]

MIXTURE: tuple[tuple[Maker, float], ...] = (
    (copying.repeat, 3.0),
    (copying.wrap, 3.0),
    (copying.neighbour, 3.0),
    (copying.nth_word, 2.0),
    (copying.replace, 2.0),
    (copying.drop, 1.0),
    (copying.letter_case, 1.0),
    (copying.quoted_part, 2.0),
    (lists.rejoin, 2.0),
    (lists.reorder, 2.0),
    (lists.count_items, 1.5),
    (lists.item_at, 2.0),
    (lists.membership, 1.5),
    (lists.extend, 1.0),
    (lists.mentioned, 3.0),
    (lists.pair_up, 1.5),
    (numbers.arithmetic, 1.0),
    (numbers.spell_number, 2.0),
    (numbers.compare, 2.0),
    (numbers.clock, 2.0),
    (numbers.calendar, 0.5),
    (numbers.repeat_times, 1.0),
    (numbers_of_lists.aggregate, 1.0),
    (numbers_of_lists.named_largest, 1.0),
    (forms.restyle, 4.0),
    (forms.read_field, 2.5),
    (forms.find_field, 2.0),
    (forms.fill_given_shape, 6.0),
    (forms.translate, 2.0),
    (forms.look_up, 2.0),
    (patterns.shown_pattern, 8.0),
    (patterns.word_family, 0.5),
    (cabinets.cabinet, 6.0),
    (frames.frame_notation, 14.0),
    (frames.frame_shape, 7.0),
    (frames.frame_record, 5.0),
    (smalltalk.smalltalk, 0.4),
    (smalltalk.opposite, 0.4),
)
_MAKERS = tuple(maker for maker, _ in MIXTURE)
_SHARES = tuple(share for _, share in MIXTURE)
_SYSTEM = ("You are a helpful assistant.", "Answer briefly.", "You answer with the result only.", "Be exact.")


@dataclass(frozen=True)
class Segment:
    """A piece of a document; `scored` says whether its tokens can be known from what stands before them."""

    role: Role
    text: str
    scored: bool


Document = tuple[Segment, ...]


def draw_exchange(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """One exchange of the mixture."""
    return rng.choices(_MAKERS, _SHARES)[0](rng, lexicon)


def draw_conversation(rng: random.Random, lexicon: Lexicon) -> Document:
    """A conversation of one to three exchanges, or one random transformation shown turn by turn; sometimes with a
    system turn.
    """
    segments: list[Segment] = []
    if rng.random() < 0.05:
        segments.append(Segment("system", rng.choice(_SYSTEM), scored=False))
    if rng.random() < 0.1:
        for number, exchange in enumerate(patterns.draw_transformation(rng, lexicon, rng.randint(3, 4))):
            segments += [
                Segment("user", exchange.prompt, scored=False),
                Segment("assistant", exchange.answer, scored=number > 1),
            ]
        return tuple(segments)
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        exchange = draw_exchange(rng, lexicon)
        segments += [Segment("user", exchange.prompt, scored=False), Segment("assistant", exchange.answer, scored=True)]
    return tuple(segments)
