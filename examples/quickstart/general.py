"""General texts: the guardrail that adapters must not spoil, and what the classifier has to leave to the base.

The guardrail asks for skills that the base learnt, on words that its pretraining tasks never used. The texts for
the classifier are requests and questions of every sort, near misses of the three routes among them; `train` and
`eval` have separate wordings and words.
"""

import random

from .curriculum import copying, forms, lists, numbers
from .curriculum.exchange import Exchange, Maker
from .entities import GUARDRAIL_NAMES, GUARDRAIL_WORDS, Split
from .general_phrases import REQUESTS
from .lexicon import Lexicon
from .wording import say

SKILLS: tuple[Maker, ...] = (
    copying.repeat,
    copying.wrap,
    copying.neighbour,
    copying.nth_word,
    copying.replace,
    copying.quoted_part,
    lists.item_at,
    lists.rejoin,
    lists.extend,
    lists.membership,
    forms.read_field,
    forms.find_field,
    forms.fill_given_shape,
)
_SUMS: tuple[Maker, ...] = (
    numbers.arithmetic,
    numbers.spell_number,
    numbers.compare,
    numbers.clock,
    lists.reorder,
    lists.count_items,
)


def guardrail_lexicon() -> Lexicon:
    """Only the guardrail's own words, none invented."""
    return Lexicon(tuple(GUARDRAIL_WORDS), tuple(GUARDRAIL_NAMES), listed_words=1.0, listed_names=1.0)


def draw_guardrail(count: int, seed: int) -> list[Exchange]:
    """`count` different items, the skills in turn."""
    rng = random.Random(f"{seed}/guardrail")
    lexicon = guardrail_lexicon()
    items: dict[str, Exchange] = {}
    while len(items) < count:
        exchange = SKILLS[len(items) % len(SKILLS)](rng, lexicon)
        items.setdefault(exchange.prompt, exchange)
    return list(items.values())


def draw_general_texts(lexicon: Lexicon, split: Split, count: int, seed: int) -> list[str]:
    """`count` different texts that no route should take: half plain requests, half exercises of the base's skills.

    The words are taken from disjoint halves of the lexicon for `train` and for the other splits.
    """
    rng = random.Random(f"{seed}/general/{split}")
    half = slice(0, None, 2) if split == "train" else slice(1, None, 2)
    words = Lexicon(lexicon.words[half], lexicon.names[half], listed_words=1.0, listed_names=1.0)
    texts: dict[str, None] = {}
    while len(texts) < count:
        if rng.random() < 0.5:
            wording = rng.choice(REQUESTS["train" if split == "train" else "eval"])
            text = say(wording, rng, w=words.word(rng), u=words.word(rng), n=words.name(rng), d=str(rng.randint(2, 99)))
        else:
            text = rng.choice(SKILLS + _SUMS)(rng, words).prompt
        texts[text] = None
    return list(texts)
