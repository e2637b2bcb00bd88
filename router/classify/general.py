"""General prompts: what people ask that no route is for, to learn a base class from where no base examples are given.

They are drawn from templates and word lists of our own (`general_prompts.json`): small talk, facts, writing, code,
travel, health, money, other languages, follow-ups, markup, numbers, noise, long texts; as people type them, with
and without capitals, punctuation and typos. The same count and seed give the same prompts.
"""

from __future__ import annotations

import json
import random
import re
import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from adapters.classifier_evidence import NEGATIVE_LABELS
from adapters.rows import LabelledText

from .calibration import ENOUGH_BASE_ROWS
from .features import fit_features
from .head import stack
from .means import ClassMeans

PROMPTS_PER_ROW = 4
FEWEST, MOST = 200, 1_000
CLAIMED_FROM = 0.25  # the quantile of the similarity of examples to their own route
POOLED_SHARE = 0.65
CLAIMED_WITHOUT_EXAMPLES = 0.75  # stands in for that quantile where every route has a single example
_SLOT = re.compile(r"\{(\w+)\}")
_OPENINGS = ("please ", "hey, ", "quick question: ", "so ", "ok, ", "well, ", "hi, ", "maybe you know: ")


@dataclass(frozen=True, slots=True)
class Phrases:
    """`kinds`: templates by kind of prompt; `{name}` in one stands for any of `lists[name]`."""

    lists: Mapping[str, Sequence[str]]
    kinds: Mapping[str, Sequence[str]]


def load_phrases() -> Phrases:
    """The templates and word lists shipped with the package."""
    found = json.loads(files(__package__).joinpath("general_prompts.json").read_text(encoding="utf-8"))
    return Phrases(found["lists"], found["kinds"])


def general_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` distinct prompts, every kind about as often."""
    phrases, draw = load_phrases(), random.Random(seed)  # noqa: S311  # no secret depends on it
    prompts: dict[str, None] = {}
    while len(prompts) < count:
        prompts[_typed(_prompt(phrases, draw), draw)] = None
    return list(prompts)


def unclaimed_prompts(rows: Sequence[LabelledText], count: int | None = None, seed: int = 0) -> list[str]:
    """General prompts that no route of `rows` may claim; none where `rows` hold base or oos rows enough.

    Drawn are `count`, by default four a row, from 200 to 1,000.
    A route claims a prompt that is as similar to the mean of its examples as three in four of its own examples are
    (each to the mean of the others): a route for travel keeps its travellers. So that a route of examples that have
    nothing in common does not claim everything, two thirds of what three in four of all examples reach is asked too.
    """
    routes = [row for row in rows if row.label not in NEGATIVE_LABELS]
    if len(rows) - len(routes) >= ENOUGH_BASE_ROWS or not routes:
        return []
    distinct = list(dict.fromkeys(routes))
    prompts = general_prompts(count or max(FEWEST, min(MOST, PROMPTS_PER_ROW * len(distinct))), seed)
    features = fit_features([*(row.text for row in distinct), *prompts], [True] * (len(distinct) + len(prompts)))
    matrix = stack([features.transform(row.text) for row in distinct], features.size)
    places: dict[str, list[int]] = defaultdict(list)
    for at, row in enumerate(distinct):
        places[row.label].append(at)
    means = ClassMeans(matrix, [row.label for row in distinct])
    own = [means.left_out(matrix[places[label]], label) for label in means.labels.tolist()]
    judged = [similar for similar in own if len(similar) > 1]
    pooled = np.quantile(np.concatenate(judged), CLAIMED_FROM) if judged else CLAIMED_WITHOUT_EXAMPLES
    claims = np.maximum([np.quantile(similar, CLAIMED_FROM) for similar in own], POOLED_SHARE * pooled)
    similar = means.cosines(stack([features.transform(prompt) for prompt in prompts], features.size))
    return [prompts[at] for at in np.flatnonzero(~np.any(similar >= claims, axis=1))]


def _prompt(phrases: Phrases, draw: random.Random) -> str:
    kind = draw.choice([*phrases.kinds, "noise", "long"])
    if kind == "noise":
        return _noise(draw)
    if kind == "long":
        return " ".join(_filled("{sentence}", phrases, draw) for _ in range(draw.randrange(2, 25)))
    return _filled(draw.choice(phrases.kinds[kind]), phrases, draw)


def _filled(template: str, phrases: Phrases, draw: random.Random) -> str:
    while _SLOT.search(template):
        template = _SLOT.sub(lambda slot: draw.choice(phrases.lists[slot[1]]), template)
    return template.replace("{{", "{").replace("}}", "}")


def _noise(draw: random.Random) -> str:
    """Keys hit at random, one key held, or signs alone."""
    alphabet = draw.choice((string.ascii_lowercase, "asdfjkl;", string.digits, string.punctuation, "?!. ", "😀🎉👍❤️🤔"))
    words = ["".join(draw.choices(alphabet, k=draw.randrange(1, 12))) for _ in range(draw.randrange(1, 5))]
    return draw.choice((" ".join(words), draw.choice(alphabet) * draw.randrange(1, 20)))


def _typed(prompt: str, draw: random.Random) -> str:
    """`prompt` as somebody might type it."""
    if draw.random() < 0.1:
        prompt = draw.choice(_OPENINGS) + prompt
    if draw.random() < 0.1 and len(prompt) > 3:
        at = draw.randrange(len(prompt) - 1)
        prompt = prompt[:at] + draw.choice(("", prompt[at + 1], prompt[at] * 2)) + prompt[at + 1 :]
    style = draw.random()
    if style < 0.4:
        prompt = prompt.lower().rstrip("?!.")
    elif style < 0.7:
        prompt = prompt[:1].upper() + prompt[1:] + draw.choice(("?", ".", "!", ""))
    elif style < 0.73:
        prompt = prompt.upper()
    return prompt if prompt.strip() else "?"
