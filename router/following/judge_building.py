"""Builds the parts of a judge: reads the classifier, opens the encoder, and makes memory out of the exemplars.

All of it blocks, so it runs beside the event loop.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from adapters.errors import BranchlineError
from adapters.exemplars import Exemplars
from adapters.rows import text_digest
from adapters.store import Store

from ..classify.classifier import Classifier
from ..classify.encoding import Encoder, EncoderRef
from ..classify.entries import IsSeen, choose_entries, entries_of
from ..classify.features import Floats
from ..classify.memory import Memory
from ..errors import EncoderUnavailable

BATCH_TEXTS = 64
log = logging.getLogger("branchline.judging")
LoadClassifier = Callable[[Path, str], Classifier]
FindEncoder = Callable[[EncoderRef | None], Encoder | None]
ReadExemplars = Callable[[], Exemplars]


def no_encoder(ref: EncoderRef | None) -> Encoder | None:
    """The `FindEncoder` of a gateway that was given none. Raises `EncoderUnavailable` where one is needed."""
    if ref is not None:
        raise EncoderUnavailable(f"the classifier was fitted with the encoder {ref.name}, and no encoder is given")
    return None


class BuildStopped(Exception):
    """Nobody waits for the build any more."""


@dataclass(frozen=True, slots=True)
class Parts:
    """What a judge is made of. `own` is the gateway's own encoder, once a classifier that names none asked for it.

    `problem`: why `classifier` is not the wanted one, but the one before.
    """

    classifier: Classifier | None
    memory: Memory
    encoder: Encoder | None = None
    own: Encoder | None = None
    problem: str | None = None


class JudgeBuilder:
    """`read_exemplars` tells the exemplars as they stand. `find_encoder` gives the encoder that a classifier was fitted
    with, or, asked for `None`, the gateway's own.
    """

    def __init__(
        self, read_exemplars: ReadExemplars, store: Store, load_classifier: LoadClassifier, find_encoder: FindEncoder
    ) -> None:
        self._read_exemplars = read_exemplars
        self._store = store
        self._load_classifier = load_classifier
        self._find_encoder = find_encoder

    def build(self, wanted: str | None, before: Parts, stopped: threading.Event) -> Parts:
        """Where the wanted classifier cannot be used, the memory beside the one before; else the memory beside it.

        Raises `BuildStopped` once `stopped` is set, and what reading the registry and encoding raise.
        """
        found, classifier = replace(before, problem=None), before.classifier
        try:
            if wanted != (classifier.digest if classifier else None):
                classifier = self._load(wanted)
            found = self._with_encoder(classifier, found)
        except Exception as error:  # whatever it was: it is shown, and tried again
            unforeseen = None if isinstance(error, BranchlineError) else error
            log.error("classifier %s could not be brought in: %s", str(wanted)[:16], error, exc_info=unforeseen)
            if classifier is None or classifier.encoder is None:
                found = replace(found, classifier=classifier)
            found = replace(found, problem=reason_of("the classifier", error))
        encoder = found.encoder and _Stoppable(found.encoder, stopped)
        rows = self._read_exemplars().rows
        memory = Memory.build(rows, is_seen=_is_seen(found.classifier), encoder=encoder, before=before.memory)
        return replace(found, memory=memory)

    def catch_up(self, parts: Parts, *, most_new: int) -> Parts:
        """`parts` without the exemplars that are none any more, and with the new ones where their texts are no more
        than `most_new`: so this takes little longer than reading them. It gives `parts` itself where nothing changed.

        Raises what reading the registry and encoding raise.
        """
        rows, is_seen = self._read_exemplars().rows, _is_seen(parts.classifier)
        wanted = choose_entries(entries_of(rows, is_seen))
        known = parts.memory.terms
        if len({entry.text_digest for entry in wanted} - known.keys()) > most_new:
            rows = tuple(row for row in rows if text_digest(row.text) in known)
            left = {(row.label, text_digest(row.text)) for row in rows}
            if all((entry.label, entry.text_digest) in left for entry in parts.memory.entries):
                return parts
        elif tuple(wanted) == parts.memory.entries:
            return parts
        return replace(parts, memory=Memory.build(rows, is_seen=is_seen, encoder=parts.encoder, before=parts.memory))

    def _load(self, wanted: str | None) -> Classifier | None:
        return None if wanted is None else self._load_classifier(self._store.classifier_folder(wanted), wanted)

    def _with_encoder(self, classifier: Classifier | None, before: Parts) -> Parts:
        """The encoder that `classifier` was fitted with, else the gateway's own; what is open is not opened again."""
        ref = classifier.encoder if classifier else None
        if ref is None:
            own = before.own or self._find_encoder(None)
            return replace(before, classifier=classifier, encoder=own, own=own)
        known = [one for one in (before.encoder, before.own) if one is not None and one.ref == ref]
        return replace(before, classifier=classifier, encoder=known[0] if known else self._find_encoder(ref))


@dataclass(frozen=True, slots=True)
class _Stoppable:
    """An `Encoder` that looks between batches whether it was stopped; raises `BuildStopped` then."""

    encoder: Encoder
    stopped: threading.Event

    @property
    def ref(self) -> EncoderRef:
        return self.encoder.ref

    def encode(self, texts: Sequence[str]) -> Floats:
        made = [np.empty((0, self.ref.dimension), dtype=np.float32)]
        for start in range(0, len(texts), BATCH_TEXTS):
            if self.stopped.is_set():
                raise BuildStopped
            made.append(self.encoder.encode(texts[start : start + BATCH_TEXTS]))
        return np.concatenate(made)


def _is_seen(classifier: Classifier | None) -> IsSeen:
    return classifier.has_row if classifier else lambda _label, _text: False


def reason_of(what: str, error: Exception) -> str:
    """What an operator is told of `error`."""
    if isinstance(error, BranchlineError):
        return error.message
    if isinstance(error, OSError):
        return f"{what} cannot be read: {error.strerror}"
    return f"{what} could not be brought in ({type(error).__name__}); see the log"
