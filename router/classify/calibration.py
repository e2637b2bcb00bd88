"""Calibration rows: what the classifier says of texts that its weights never saw, and what is learned from that."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapters.classifier_evidence import NEGATIVE_LABELS
from adapters.rows import LabelledText

from .abstain import (
    NOTHING_KNOWN,
    Flags,
    ScoreName,
    choose_score,
    conformal_threshold,
    decision_scores,
    separating_threshold,
)
from .classifier import BASE
from .confidence import SPEAKS_FROM, Confidence, fit_confidence, known_share
from .encoded import EncodedRows
from .features import Features, Scalars, reading
from .head import Head, Labels, fit_temperature
from .pruned_head import PrunedHead

NEGATIVE = -1
ENOUGH_BASE_ROWS = 10  # fewer base rows make no class of their own beside general prompts
FOLDS = 5
UNLEARNED = 0.05  # a score's temperature without rows: the energy is then the top logit, whatever the logits' scale
OWN_THRESHOLD_ROWS = 200  # fewer cannot place a route's own threshold
MANY_ROWS = 5_000  # from here on one held-out fold is calibration enough, and four further fits are saved
MANY_LOGITS = 20_000_000  # rows × labels; of more rows a part is judged, for memory's sake
ENOUGH_ROWS = 1_000  # are judged however many labels there are

Fit = Callable[[EncodedRows, EncodedRows], tuple[Features, Head | PrunedHead]]  # rows, and what is taught beside them


@dataclass(frozen=True, slots=True)
class Calibration:
    """`logits` (rows, labels) of unseen rows; `targets` (rows,): the column of each row's label.

    `known` (rows,) is the share of each text that is known (`confidence`). A negative has the column of the base
    class, or `NEGATIVE` where none was learned. `rows` are the rows themselves. `by_words`: no encoder speaks for a
    text of which too little is known.
    """

    logits: Scalars
    targets: Labels
    known: Scalars
    base: int | None
    rows: tuple[LabelledText, ...] = ()
    by_words: bool = True

    @property
    def silent(self) -> Flags:
        """(rows,) Which texts hold too little to judge them by."""
        silent: Flags = (self.known < SPEAKS_FROM) & self.by_words
        return silent

    def scores(self, name: ScoreName, temperature: float) -> Scalars:
        """(rows,) What the classifier compares with its threshold."""
        found: Scalars = np.where(
            self.silent, NOTHING_KNOWN, decision_scores(name, self.logits, temperature, self.base)
        )
        return found

    @property
    def negative(self) -> Flags:
        negative: Flags = np.isin(self.targets, [NEGATIVE, NEGATIVE if self.base is None else self.base])
        return negative

    @property
    def tops(self) -> Labels:
        """(rows,) the column of each row's top route, which the base is not."""
        logits = self.logits
        if self.base is not None:
            logits = logits.copy()
            logits[:, self.base] = -np.inf
        tops: Labels = logits.argmax(axis=1)
        return tops

    @property
    def accuracy(self) -> float | None:
        """Share of rows whose label has the largest logit."""
        labelled = self.targets != NEGATIVE
        return float((self.logits.argmax(axis=1) == self.targets)[labelled].mean()) if labelled.any() else None


@dataclass(frozen=True, slots=True)
class Abstention:
    """`threshold` is `None` where there was no row to learn it from; `own_thresholds`: those of routes by column.

    `temperature` is the scores', `confidence` the probabilities'. `holds` says whether there were rows enough for the
    coverage asked for.
    """

    temperature: float
    confidence: Confidence
    score_name: ScoreName
    threshold: float | None
    own_thresholds: Mapping[int, float]
    holds: bool


def learn_abstention(rows: Calibration, coverage: float, strangers: Calibration | None = None) -> Abstention:
    """Temperature, score and thresholds. `strangers`: general prompts, judged like `rows`.

    A route that is the top one of `OWN_THRESHOLD_ROWS` in-scope rows or more gets a threshold of its own, which holds
    the coverage among the texts that it is the top route of; the others share one. With too few rows for `coverage`
    the threshold is what separates in-scope rows from negatives and strangers best, and with neither the smallest score
    of an in-scope row: n rows then promise a coverage of n / (n + 1). Nothing else is learned from strangers, who were
    made and are easier than what the base will see.
    """
    labelled, negative = rows.targets != NEGATIVE, rows.negative
    temperature = fit_temperature(rows.logits[labelled], rows.targets[labelled]) if labelled.any() else UNLEARNED
    confidence = fit_confidence(rows.logits[labelled], rows.known[labelled], rows.targets[labelled])
    name = choose_score(rows.logits, negative, temperature, rows.base)
    scores = rows.scores(name, temperature)
    in_scope, speaking = scores[~negative], scores[~negative & ~rows.silent]
    if not len(speaking):
        return Abstention(temperature, confidence, name, threshold=None, own_thresholds={}, holds=False)
    own = _own_thresholds(rows, scores, coverage)
    shared = scores[~negative & ~np.isin(rows.tops, list(own))]
    found = [conformal_threshold(some, coverage) for some in (shared, in_scope) if len(some)]
    threshold = next((one for one in found if one is not None), None)
    holds = threshold is not None
    if threshold is None:
        others = [strangers.scores(name, temperature)] if strangers else []
        outside = np.concatenate([scores[negative], *others])
        threshold = separating_threshold(speaking, outside) if len(outside) else float(speaking.min())
    return Abstention(temperature, confidence, name, max(threshold, float(speaking.min())), own, holds)


def _own_thresholds(rows: Calibration, scores: Scalars, coverage: float) -> dict[int, float]:
    tops, counts = np.unique(rows.tops[~rows.negative], return_counts=True)
    thresholds = {}
    for top in tops[counts >= OWN_THRESHOLD_ROWS]:
        its = scores[~rows.negative & (rows.tops == top)]
        found = conformal_threshold(its, coverage)
        if found is not None and found > NOTHING_KNOWN:
            thresholds[int(top)] = found
    return thresholds


def apply(features: Features, head: Head | PrunedHead, rows: EncodedRows) -> Calibration:
    """What `head` says of `rows`; those of a label it does not have are left out, as are most where there are many."""
    columns = {label: at for at, label in enumerate(head.labels)}
    base = columns.get(BASE)
    columns |= dict.fromkeys(NEGATIVE_LABELS, NEGATIVE if base is None else base)
    labelled = _part(rows.where([label in columns for label in rows.labels]), len(head.labels))
    logits = np.zeros((len(labelled), len(head.labels)))
    known = np.zeros(len(labelled))
    for at, text in enumerate(labelled.texts):
        sparse = features.transform(text)
        logits[at] = head.logits(sparse, labelled.vector(at))
        known[at] = known_share(sparse)
    targets = np.array([columns[label] for label in labelled.labels], dtype=np.int64)
    return Calibration(logits, targets, known, base, tuple(labelled.rows), by_words=labelled.vectors is None)


def hold_out(rows: EncodedRows, taught: EncodedRows, fit: Fit, seed: int) -> tuple[Calibration, Calibration | None]:
    """Each row judged by a `fit` on the other folds: 5 in turn, or only the first of them with `MANY_ROWS`.

    A label's only text stays in every fit, so that each knows all labels, and is not judged; nor is what is taught as
    a route's name. Texts of one reading are on one side. Of `taught` only the rows of the base are held out in turn,
    the general prompts: what is said of them comes second, `None` without any.
    """
    names = {reading(text) for text, label in zip(taught.texts, taught.labels, strict=True) if label != BASE}
    folds = [
        -1 if reading(text) in names else fold for text, fold in zip(rows.texts, _folds(rows.rows, seed), strict=True)
    ]
    prompts = [at % FOLDS if label == BASE else -1 for at, label in enumerate(taught.labels)]
    judged: list[Calibration] = []
    strangers: list[Calibration] = []
    for fold in range(1 if len(rows) >= MANY_ROWS else FOLDS):
        features, head = fit(rows.where([own != fold for own in folds]), taught.where([own != fold for own in prompts]))
        judged.append(apply(features, head, rows.where([own == fold for own in folds])))
        strangers.append(apply(features, head, taught.where([own == fold for own in prompts])))
    return _together(judged), _together(strangers) if BASE in taught.labels else None


def _together(parts: Sequence[Calibration]) -> Calibration:
    return Calibration(
        np.concatenate([part.logits for part in parts]),
        np.concatenate([part.targets for part in parts]),
        np.concatenate([part.known for part in parts]),
        parts[0].base,
        tuple(row for part in parts for row in part.rows),
        parts[0].by_words,
    )


def _part(rows: EncodedRows, labels: int) -> EncodedRows:
    """`rows`, or so many of them that `MANY_LOGITS` hold what is said of them; which ones, their digests say."""
    limit = max(ENOUGH_ROWS, MANY_LOGITS // labels)
    if len(rows) <= limit:
        return rows
    digests = [row_digest(row) for row in rows.rows]
    last = sorted(digests)[limit - 1]
    return rows.where([digest <= last for digest in digests])


def row_digest(row: LabelledText, seed: int = 0) -> bytes:
    """sha256 of a row, its order in every shuffle."""
    return hashlib.sha256(f"{seed}\0{row.label}\0{row.text}".encode(errors="surrogatepass")).digest()


def _folds(rows: Sequence[LabelledText], seed: int) -> list[int]:
    """A fold for each row, every label's readings dealt evenly; −1 where a label has no other."""
    readings = [reading(row.text) for row in rows]
    counts = Counter(label for label, _ in {(row.label, one) for row, one in zip(rows, readings, strict=True)})
    alone = {one for row, one in zip(rows, readings, strict=True) if counts[row.label] == 1}
    dealt: Counter[str] = Counter()
    folds: dict[str, int] = dict.fromkeys(alone, -1)
    for row, one in sorted(zip(rows, readings, strict=True), key=lambda pair: row_digest(pair[0], seed)):
        if one not in folds:
            folds[one] = dealt[row.label] % FOLDS
            dealt[row.label] += 1
    return [folds[one] for one in readings]
