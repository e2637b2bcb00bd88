"""Which classifier a command works with: the live one, a published number or a folder; and what it says of texts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import click

from adapters.classifiers import classifier_version, live_classifier
from adapters.command import open_home
from adapters.errors import NotFound
from adapters.exemplars import Exemplar
from adapters.home import Home

from ..classify.classifier import MAX_EARLIER_TURNS, Classifier
from ..classify.encoding import Encoder
from ..classify.features import Floats
from ..classify.judge import Judge
from ..classify.loader import load_classifier
from ..classify.memory import Memory
from ..errors import ClassifierInvalid
from ..types import Scores

LIVE = "live"
MAX_NUMBER_DIGITS = 9
_OTHER_SCHEMA = re.compile(r"schema is .{1,40}?, this version reads \d+")
classifier_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--classifier",
    "named",
    metavar="NUMBER|DIR",
    default=LIVE,
    help="A published classifier's number or a classifier folder [default: the live one].",
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A loaded classifier; `number` is its place in the registry, `None` for a folder. `encoder` where it needs one.

    With a `memory` it decides as a gateway would, without one it decides alone.
    """

    classifier: Classifier
    number: int | None
    encoder: Encoder | None = None
    memory: Memory | None = None

    @property
    def name(self) -> str:
        """What messages call it."""
        digest = self.classifier.digest[:16]
        return digest if self.number is None else f"{self.number} ({digest})"

    def score(self, texts: Sequence[str]) -> list[Scores]:
        """Scores of each text as a single turn. Raises what `Encoder.encode` raises."""
        return self.decide([[text] for text in texts])

    def decide(self, prompts: Sequence[Sequence[str]]) -> list[Scores]:
        """The decision on the user turns of each prompt, newest first."""
        read = [turns[: 1 + MAX_EARLIER_TURNS] for turns in prompts]
        if self.encoder is None:
            return [self._decide(turns, None) for turns in read]
        vectors = self.encoder.encode([turn for turns in read for turn in turns])
        found, at = [], 0
        for turns in read:
            found.append(self._decide(turns, vectors[at : at + len(turns)]))
            at += len(turns)
        return found

    def _decide(self, turns: Sequence[str], vectors: Floats | None) -> Scores:
        if self.memory is None:
            return self.classifier.decide_text(turns, vectors)
        return Judge(self.classifier, self.memory).judge(turns, vectors)

    def beside(self, exemplars: Sequence[Exemplar]) -> Chosen:
        """This classifier with the memory that a gateway would give it."""
        memory = Memory.build(exemplars, is_seen=self.classifier.has_row, encoder=self.encoder)
        return replace(self, memory=memory)


def is_folder(named: str) -> bool:
    """Whether NUMBER|DIR means a folder."""
    return named != LIVE and not named.isdecimal()


def choose_classifier(home: Home, named: str = LIVE, encoder: str | None = None) -> Chosen:
    """`live`, a number, or else a folder; `encoder` is where its encoder is found, if it needs one.

    Raises `NotFound`, `ClassifierInvalid` for one that cannot be read, and `EncoderUnavailable`.
    """
    found, number = _load(home, named)
    if found.encoder is None:
        return Chosen(found, number)
    from ..classify.encoder.opening import encoder_cache, find_encoder

    return Chosen(found, number, find_encoder(found.encoder, encoder, encoder_cache(home), open_store=home.open_store))


def _load(home: Home, named: str) -> tuple[Classifier, int | None]:
    if is_folder(named):
        return load_classifier(Path(named)), None
    registry, store = open_home(home)
    version = live_classifier(registry) if named == LIVE else classifier_version(registry, _number(named))
    if version is None:
        raise NotFound("no classifier is live", hint="run `branchline classifier fit --promote`")
    try:
        return load_classifier(store.classifier_folder(version.digest), digest=version.digest), version.number
    except ClassifierInvalid as error:
        other = _OTHER_SCHEMA.search(error.message)
        if other is None:
            raise
        raise ClassifierInvalid(
            f"classifier {version.number} was fitted by another build: {other[0]}",
            hint="fit again and promote with --force",
        ) from error


def _number(named: str) -> int:
    """Raises `NotFound` for what no database can hold."""
    if len(named) > MAX_NUMBER_DIGITS:
        raise NotFound(f"no classifier {named:.40}", hint="see `branchline classifier list`")
    return int(named)
