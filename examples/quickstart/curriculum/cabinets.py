"""A named list of things and a request about two of them: pick names out of a list that the prompt gives, by their
role in a sentence.
"""

import random

from ..lexicon import Lexicon
from ..wording import fill_slots, say
from .exchange import Exchange

_WORDINGS = (
    ("[open|unlock|look into] {p}[ now|] [if|should] {q} [says|reads|spells] {v}", "{n}.{p}?{q}={v}"),
    ("[if|should] {q} [says|reads|spells] {v}[,| then] [open|unlock|look into] {p}", "{n}.{p}?{q}={v}"),
    ("[open|unlock|look into] {p} [if|should] {q} [tops|exceeds|goes above|climbs over] {m}", "{n}.{p}?{q}>{m}"),
    ("[if|should] {q} [tops|exceeds|goes above|climbs over] {m}[,| then] [open|unlock] {p}", "{n}.{p}?{q}>{m}"),
    ("[open|unlock|look into] {p} [if|should] {q} [sinks below|is short of|drops under] {m}", "{n}.{p}?{q}<{m}"),
    ("[open|unlock|look into] {p}", "{n}.{p}"),
    ("[open|unlock] [all|everything]", "{n}.*"),
    ("[weigh|scale] {p}[ for me|]", "{n}.weigh[{p}]"),
    ("[weigh|scale] {p} [if|should] {q} [says|reads] {v}", "{n}.weigh[{p}]?{q}={v}"),
    ("[lock|shut] {p} and {q}", "{n}.{p}+{q}!"),
)


def cabinet(rng: random.Random, lexicon: Lexicon) -> Exchange:
    """Drawers of a cabinet: open one, perhaps on a condition about another."""
    drawers = lexicon.distinct_words(rng, rng.randint(2, 5))
    name, value = lexicon.word(rng), lexicon.entity(rng)
    target, condition = rng.sample(drawers, 2)
    wording, notation = rng.choice(_WORDINGS)
    slots = {"n": name, "p": target, "q": condition, "v": value, "m": str(rng.randint(0, 99))}
    text = say(wording, rng, **slots)
    listed = ", ".join(drawers)
    head = rng.choice((f"cabinet {name} [{listed}]", f"{name} <{listed}>", f"{name}: {listed};"))
    prompt = f"{head} {text}" if rng.random() < 0.7 else f"{text}\n{head}"
    return Exchange(prompt, fill_slots(notation, slots))
