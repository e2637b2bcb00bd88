"""Episodic memory: what is like a text among the exemplars in force, before any refit.

An exemplar speaks for its label unless the classifier's fit has seen it; of those seen a few for each label are kept
as rivals, which show what the routes that the classifier knows sound like. A correction always speaks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from adapters.exemplars import Exemplar
from adapters.rows import sha256_json

from .abstain import Flags
from .encoding import Encoder, EncoderRef
from .entries import Entry, IsSeen, choose_entries, entries_of
from .features import Floats, Indices, Scalars
from .terms import TermIndex, Terms, build_index, terms_of
from .vectors import VectorIndex, build_vector_index

NEAR_DUPLICATE = 0.9
SECOND_SHARE = 0.25  # of the second nearest in a label's evidence; this and the next chosen on CLINC150 val
VECTOR_SHARE = 0.65  # of the similarity by vectors beside the one by terms
_EQUAL = 1e-6  # similarities closer than this differ by rounding alone


@dataclass(frozen=True, slots=True)
class Match:
    """An exemplar and its similarity to a text, in [0, 1]."""

    label: str
    similarity: float
    text_digest: str
    source: str
    seen: bool


@dataclass(frozen=True, slots=True)
class Recollection:
    """What memory says of a text: `match` speaks for it, the nearest exemplar of the label with the most evidence.

    evidence = ¾ · similarity of the label's nearest exemplar + ¼ · of its second nearest; where it has but one, or
    the nearest of all is a near-duplicate, that one's alone. `rival` is the similarity of the nearest exemplar of
    any other label, `None` where memory holds no other label. `choices`: how many exemplars speak for the label (1
    for a near-duplicate, which was not picked for its rank among many). `has_seen`: whether memory holds any exemplar
    that the fit has seen.
    """

    match: Match
    evidence: float
    rival: float | None
    choices: int
    has_seen: bool


@dataclass(frozen=True)
class Memory:
    """Immutable, thread-safe, no I/O; holds no text. `digest` is that of all exemplars it was built from.

    `entries` are the rows of the indexes; those of a label stand together. `terms` and `vectors` are by text digest,
    for the next build; `encoder` made the vectors.
    """

    digest: str | None
    entries: tuple[Entry, ...]
    index: TermIndex
    terms: Mapping[str, Terms]
    vectors: Mapping[str, Floats]
    vector_index: VectorIndex | None
    encoder: EncoderRef | None

    @classmethod
    def build(
        cls,
        exemplars: Sequence[Exemplar],
        *,
        is_seen: IsSeen = lambda _label, _text: False,
        encoder: Encoder | None = None,
        before: Memory | None = None,
    ) -> Memory:
        """A memory of `exemplars`; `is_seen(label, text)` is the classifier's `has_row`.

        What `before` knows of a text is not computed again. Blocks; raises what `encoder.encode` raises.
        """
        entries = entries_of(exemplars, is_seen)
        texts = {entry.text_digest: one.text for entry, one in zip(entries, exemplars, strict=True)}
        pairs = sorted([entry.label, entry.text_digest] for entry in entries)
        kept = choose_entries(entries)
        wanted = {entry.text_digest: texts[entry.text_digest] for entry in kept}
        known = before.terms if before else {}
        terms = {digest: known.get(digest) or terms_of(text) for digest, text in wanted.items()}
        vectors = _vectors(wanted, encoder, before)
        dense = [vectors[entry.text_digest] for entry in kept if encoder]
        return cls(
            sha256_json(pairs) if pairs else None,
            tuple(kept),
            build_index([terms[entry.text_digest] for entry in kept]),
            terms,
            vectors,
            build_vector_index(dense, [entry.label for entry in kept]) if encoder else None,
            encoder.ref if encoder else None,
        )

    def nearest(self, text: str, vector: Floats | None = None, k: int = 5) -> tuple[Match, ...]:
        """The `k` exemplars most like `text`, the most similar first.

        `vector` (dimension,) is the encoder's, where memory was built with one.
        """
        similarities = self._similarities(text, vector)
        return tuple(self._match(int(at), similarities) for at in np.lexsort((-self._ranks, -similarities))[:k])

    def recollect(self, text: str, vector: Floats | None = None) -> Recollection | None:
        """`None` where no exemplar that speaks is like `text` at all."""
        if not self.entries:
            return None
        similarities = self._similarities(text, vector)
        speaking = np.where(self._seen, -1.0, similarities)
        nearest = self._first(speaking)
        if speaking[nearest] <= 0:
            return None
        evidence, choices = speaking[nearest], 1
        if evidence < NEAR_DUPLICATE:
            of_labels = self._evidence(speaking)
            evidence = of_labels.max()
            nearest = self._first(np.where((of_labels >= evidence - _EQUAL)[self._labels], speaking, -1.0))
            choices = int(self._speaking[self._labels[nearest]])
        others = similarities[self._labels != self._labels[nearest]]
        rival = round(float(others.max()), 6) if len(others) else None
        match, has_seen = self._match(nearest, similarities), bool(self._seen.any())
        return Recollection(match, round(float(evidence), 6), rival, choices, has_seen)

    @cached_property
    def _seen(self) -> Flags:
        return np.array([entry.seen for entry in self.entries], dtype=bool)

    @cached_property
    def _ranks(self) -> Indices:
        return np.array([entry.rank for entry in self.entries], dtype=np.int64)

    @cached_property
    def _labels(self) -> Indices:
        """(rows,) the number of each row's label."""
        return np.unique([entry.label for entry in self.entries], return_inverse=True)[1]

    @cached_property
    def _speaking(self) -> Indices:
        """(labels,) how many rows speak for each label."""
        return np.add.reduceat(~self._seen, self._starts, dtype=np.int64)

    @cached_property
    def _starts(self) -> Indices:
        """(labels,) the first row of each label."""
        return np.searchsorted(self._labels, np.arange(self._labels[-1] + 1))

    def _similarities(self, text: str, vector: Floats | None) -> Scalars:
        """(rows,) by terms, or by both; the vectors' part too falls where `text` is far longer than an exemplar."""
        terms = terms_of(text)
        found = self.index.cosines(terms)
        if vector is not None and self.vector_index is not None:
            found = (1 - VECTOR_SHARE) * found + VECTOR_SHARE * self.vector_index.similarities(vector)
        return found * self.index.proportions(terms)

    def _evidence(self, speaking: Scalars) -> Scalars:
        """(labels,) from the similarities of the rows that speak (rows,); negative for the other rows."""
        nearest = np.maximum.reduceat(speaking, self._starts)
        is_nearest = speaking == nearest[self._labels]
        second = np.maximum.reduceat(np.where(is_nearest, -1.0, speaking), self._starts)
        second = np.where(np.add.reduceat(is_nearest, self._starts, dtype=np.int64) > 1, nearest, second)
        evidence: Scalars = np.where(second < 0, nearest, (1 - SECOND_SHARE) * nearest + SECOND_SHARE * second)
        return evidence

    def _first(self, similarities: Scalars) -> int:
        """The row with the largest similarity; of equal ones the one with the largest rank."""
        equal = np.flatnonzero(similarities >= similarities.max() - _EQUAL)
        return int(equal[self._ranks[equal].argmax()])

    def _match(self, at: int, similarities: Scalars) -> Match:
        entry = self.entries[at]
        return Match(entry.label, round(float(similarities[at]), 6), entry.text_digest, entry.source, entry.seen)


def _vectors(texts: Mapping[str, str], encoder: Encoder | None, before: Memory | None) -> dict[str, Floats]:
    """Digest → vector of each of `texts` (digest → text); empty without an encoder."""
    if encoder is None:
        return {}
    known = before.vectors if before and before.encoder == encoder.ref else {}
    new = [digest for digest in texts if digest not in known]
    made = encoder.encode([texts[digest] for digest in new]) if new else ()
    found = {**known, **dict(zip(new, made, strict=True))}
    return {digest: found[digest] for digest in texts}
