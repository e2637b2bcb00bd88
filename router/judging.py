"""Keeps the judge in force: the wanted classifier and the exemplars as they stand, swapped in together.

A new judge is built beside the traffic; the old one stays in force until then, and where it cannot be built.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from adapters.errors import BranchlineError
from adapters.exemplars import exemplars_changed, exemplars_of
from adapters.journal import Journal, View
from adapters.store import Store

from .background import Background
from .classify.classifier import Classifier
from .classify.encoder.batching import BatchedEncoder
from .classify.encoding import Encoder, EncoderRef
from .classify.judge import Judge
from .classify.memory import Memory
from .errors import EncoderUnavailable

RETRY_SECONDS = 10.0
ENCODER_GRACE_SECONDS = 60.0  # for requests that began with an encoder since replaced
log = logging.getLogger("branchline.judging")
LoadClassifier = Callable[[Path, str], Classifier]
FindEncoder = Callable[[EncoderRef | None], Encoder | None]


def no_encoder(ref: EncoderRef | None) -> Encoder | None:
    """The `FindEncoder` of a gateway that was given none. Raises `EncoderUnavailable` where one is needed."""
    if ref is not None:
        raise EncoderUnavailable(f"the classifier was fitted with the encoder {ref.name}, and no encoder is given")
    return None


@dataclass(frozen=True, slots=True)
class _Built:
    """`problem`: why `classifier` is not the wanted one, but the one before."""

    classifier: Classifier | None
    encoder: Encoder | None
    memory: Memory
    problem: str | None


class Judging:
    """Lives on the gateway's event loop. `judge` may be read at any time; `swapped` is called after each change.

    `find_encoder` blocks; it gives the encoder that a classifier was fitted with, or, asked for `None`, the one to
    use beside a classifier that has none. `problem` says why what is in force is not what is wanted.
    """

    def __init__(
        self,
        journal: Journal,
        store: Store,
        load_classifier: LoadClassifier,
        find_encoder: FindEncoder,
        background: Background,
        swapped: Callable[[], None],
    ) -> None:
        self._journal = journal
        self._store = store
        self._load_classifier = load_classifier
        self._find_encoder = find_encoder
        self._background = background
        self._swapped = swapped
        self._wanted: str | None = None
        self._changes = 0
        self._followed = 0
        self._following: asyncio.Task[None] | None = None
        self._encoder: Encoder | None = None
        self._batched: BatchedEncoder | None = None
        self.judge = Judge(None, Memory.build(()))
        self.problem: str | None = None

    @property
    def coming(self) -> list[str]:
        """What is wanted and on its way, but not in force yet."""
        if self.problem is not None or self._followed == self._changes:
            return []
        return ["the exemplars" if self.judge.classifier_digest == self._wanted else "the classifier"]

    def follow(self, view: View) -> None:
        """Learn what is wanted now. A burst of changes to exemplars costs two builds, not one for each."""
        promoted = view.live_classifier != self._wanted
        if not promoted and not exemplars_changed(view):
            return
        self._wanted = view.live_classifier
        self._changes += 1
        if promoted or self._following is None or self._following.done():
            self._begin()

    async def stop(self) -> None:
        """End the encoder's thread. What follows the registry ends with the background."""
        if self._batched is not None:
            await self._batched.stop()

    def _begin(self) -> None:
        self._following = self._background.spawn(self._follow(self._wanted))

    async def _follow(self, wanted: str | None) -> None:
        """Build until nothing has changed meanwhile; whoever was overtaken by another classifier puts nothing in."""
        this, done = asyncio.current_task(), 0
        while self._following is this and done < self._changes:
            done = self._changes
            built, problem = None, None
            try:
                built = await asyncio.to_thread(self._build, wanted, self.judge, self._encoder)
                problem = built.problem
            except Exception as error:  # whatever it was: it is shown, and tried again
                log.exception("the exemplars could not be brought in")
                problem = _reason("the exemplars", error)
            if self._following is this:
                self._put_in_force(built, problem, done)

    def _put_in_force(self, built: _Built | None, problem: str | None, done: int) -> None:
        if built is not None:
            if built.encoder is not self._encoder:
                self._swap_encoder(built.encoder)
            self.judge = Judge(built.classifier, built.memory, self._batched)
        self.problem = problem
        if problem is None:
            self._followed = done
        else:
            self._background.later(RETRY_SECONDS, self._retry, self._wanted)
        self._swapped()

    def _swap_encoder(self, encoder: Encoder | None) -> None:
        old = self._batched
        self._encoder, self._batched = encoder, None if encoder is None else BatchedEncoder(encoder)
        if old is not None:
            self._background.later(ENCODER_GRACE_SECONDS, lambda: self._background.spawn(old.stop()))

    def _retry(self, wanted: str | None) -> None:
        if self.problem is not None and wanted == self._wanted and (self._following is None or self._following.done()):
            self._begin()

    # -- off the event loop ---------------------------------------------------------------------------------------

    def _build(self, wanted: str | None, before: Judge, encoder: Encoder | None) -> _Built:
        """Where the wanted classifier cannot be used, the memory beside the one before; else the memory beside it."""
        classifier, problem = before.classifier, None
        try:
            if wanted != before.classifier_digest:
                classifier = self._load(wanted)
            encoder = self._encoder_for(classifier, encoder)
        except Exception as error:  # as in `_follow`
            log.exception("classifier %s could not be brought in", str(wanted)[:16])
            problem = _reason("the classifier", error)
            if classifier is not None and classifier.encoder is not None:
                classifier = before.classifier
        memory = Memory.build(
            exemplars_of(self._journal).rows,
            is_seen=classifier.has_row if classifier else lambda _label, _text: False,
            encoder=encoder,
            before=before.memory,
        )
        return _Built(classifier, encoder, memory, problem)

    def _load(self, wanted: str | None) -> Classifier | None:
        return None if wanted is None else self._load_classifier(self._store.classifier_folder(wanted), wanted)

    def _encoder_for(self, classifier: Classifier | None, current: Encoder | None) -> Encoder | None:
        """The one that `classifier` was fitted with, else the gateway's own; opened once."""
        ref = classifier.encoder if classifier else None
        if current is not None and ref in (None, current.ref):
            return current
        return self._find_encoder(ref)


def _reason(what: str, error: Exception) -> str:
    if isinstance(error, BranchlineError):
        return error.message
    if isinstance(error, OSError):
        return f"{what} cannot be read: {error.strerror}"
    return f"{what} could not be brought in ({type(error).__name__}); see the log"
