"""The judge of a request's user turns: one classifier and one memory, and the encoder that both read with."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Protocol

from ..errors import EncoderOverloaded, EncoderUnavailable
from ..types import Scores
from .classifier import BASE, MAX_EARLIER_TURNS, Classifier
from .encoding import EncoderRef
from .features import Floats
from .memory import Memory
from .weighing import THRESHOLD, weigh

EMPTY = Scores(BASE, 0.0, 0.0, THRESHOLD)
LONG = 1_500  # characters of all turns: longer ones take milliseconds, in which no other request may stand still
_long_texts = ThreadPoolExecutor(1, thread_name_prefix="long-texts")  # one: they share a core in any case


class AsyncEncoder(Protocol):
    """As `encoder.batching.BatchedEncoder`: shares batches between requests, off the event loop."""

    @property
    def ref(self) -> EncoderRef: ...

    async def encode(self, texts: Sequence[str]) -> Floats: ...


class Judge:
    """Immutable: a gateway swaps it whole. `encoder` is the one that the classifier and the memory were made with."""

    def __init__(self, classifier: Classifier | None, memory: Memory, encoder: AsyncEncoder | None = None) -> None:
        self.classifier = classifier
        self.memory = memory
        self.encoder = encoder

    @property
    def classifier_digest(self) -> str | None:
        return self.classifier.digest if self.classifier else None

    @property
    def exemplars_digest(self) -> str | None:
        """Of all exemplars in force, also those that the classifier has seen."""
        return self.memory.digest

    async def decide(self, turns: Sequence[str]) -> Scores | None:
        """The scores of user turns, newest first; `None` where there is nothing to judge by, or the encoder that the
        classifier needs fails: no request fails for it.

        It waits only for vectors that something reads. Raises `EncoderOverloaded` where too many texts wait; memory
        beside a classifier that needs none does without vectors then, as where the encoder fails.
        """
        read = turns[: 1 + MAX_EARLIER_TURNS]
        if self.classifier is None and not self.memory.entries:
            return None
        try:
            vectors = await self._vectors(read) if read else None
        except EncoderUnavailable:
            return None
        if sum(map(len, read)) <= LONG:
            return self.judge(read, vectors)
        return await asyncio.get_running_loop().run_in_executor(_long_texts, self.judge, read, vectors)

    def judge(self, turns: Sequence[str], vectors: Floats | None = None) -> Scores:
        """`TEXT_RULE`: the first turn that does not abstain, else the newest one's scores.

        A turn that memory gives to the base ends the search: that is a decision, not a doubt. `vectors` (turns,
        dimension) in the order of `turns`. Raises `ClassifierInvalid` where the classifier needs them and has none.
        """
        newest: Scores | None = None
        for at, turn in enumerate(turns[: 1 + MAX_EARLIER_TURNS]):
            scores = self._scores(turn, None if vectors is None else vectors[at])
            if not scores.abstains or scores.exemplar is not None:
                return replace(scores, turn=at) if at else scores
            newest = newest or scores
        if newest is None and self.classifier is not None:
            return self.classifier.decide_text(())
        return newest or EMPTY

    async def _vectors(self, turns: Sequence[str]) -> Floats | None:
        needed = self.classifier is not None and self.classifier.encoder is not None
        if self.encoder is None or not (needed or self.memory.entries):
            return None
        try:
            return await self.encoder.encode(turns)
        except (EncoderOverloaded, EncoderUnavailable):
            if needed:
                raise
            return None

    def _scores(self, text: str, vector: Floats | None) -> Scores:
        scores = None
        if self.classifier is not None:
            scores = self.classifier.scores(text, vector if self.classifier.encoder else None)
        found = self.memory.recollect(text, vector)
        weighed = scores if found is None else weigh(scores, found)
        return weighed or EMPTY
