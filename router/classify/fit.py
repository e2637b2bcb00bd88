"""Rows in, classifier out. On one kind of processor the same rows, in any order, give the same digest."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

from adapters.classifier_evidence import NEGATIVE_LABELS
from adapters.errors import BadInput, InvalidName
from adapters.rows import LabelledText
from adapters.types import parse_route_name

from ..types import Scores
from .artifact import digest_of
from .calibration import (
    ENOUGH_BASE_ROWS,
    Abstention,
    Calibration,
    apply,
    hold_out,
    learn_abstention,
    row_digest,
)
from .centroids import fit_centroids
from .classifier import BASE, Classifier
from .encoded import EncodedRows, encode_rows, joined, row_keys
from .encoding import Encoder, EncoderRef
from .features import Features, Floats, fit_features, reading
from .head import Head, fit_head, stack
from .pruned_head import PrunedHead

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FEW_EXAMPLES = 50  # a label with fewer keeps its rare terms in the vocabulary
DEFAULT_COVERAGE = 0.99
FEWEST_STRANGERS = 100
MANY_LABELS = 500  # a regression takes 290 bytes per term and label while it is fitted: 3 GB at 300 labels of 10 rows
# Where every route has a single example nothing can be held out: then a text must score a quarter of what an example
# does. On CLINC150 val with one example a route that keeps 58 % of the texts in scope and 8 % of the others.
SHARE_WITHOUT_CALIBRATION = 0.25

HeadName = Literal["logistic", "centroids", "auto"]
FitWeights = Callable[["csr_matrix", Floats | None, Sequence[str]], Head | PrunedHead]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A classifier, and the calibration rows that its abstention was learned on; `strangers`: general prompts."""

    classifier: Classifier
    judged: Calibration
    strangers: Calibration | None = None

    @property
    def held_out(self) -> list[tuple[LabelledText, Scores]]:
        """Each calibration row with what is said of it by weights that never saw it, and as many strangers at most:
        they are easier than what the base will see, and shall not outvote the rows.
        """
        every = [*self._said(self.judged)]
        if self.strangers is not None:
            most = max(FEWEST_STRANGERS, int((~self.judged.negative).sum()))
            every += sorted(self._said(self.strangers), key=lambda pair: row_digest(pair[0]))[:most]
        return every

    def _said(self, part: Calibration) -> Iterator[tuple[LabelledText, Scores]]:
        for row, logits, known in zip(part.rows, part.logits, part.known.tolist(), strict=True):
            yield row, self.classifier.scores_of(logits, known)


def fit_classifier(
    rows: Sequence[LabelledText],
    *,
    coverage: float = DEFAULT_COVERAGE,
    calibration: Sequence[LabelledText] = (),
    seed: int = 0,
    encoder: Encoder | None = None,
    head: HeadName = "auto",
    general: Sequence[str] = (),
) -> Classifier:
    """`fit_and_judge`, for the classifier alone."""
    return fit_and_judge(
        rows, coverage=coverage, calibration=calibration, seed=seed, encoder=encoder, head=head, general=general
    ).classifier


def fit_and_judge(
    rows: Sequence[LabelledText],
    *,
    coverage: float = DEFAULT_COVERAGE,
    calibration: Sequence[LabelledText] | Calibration = (),
    seed: int = 0,
    encoder: Encoder | None = None,
    head: HeadName = "auto",
    general: Sequence[str] = (),
) -> Fitted:
    """Fit on `rows`; `base` and `oos` rows become the base class. A route's name counts as one example of it.

    `head`: a regression, the cheaper centroids, or `auto`: centroids for more than `MANY_LABELS` labels.
    `general`: prompts that belong to no route (`general.unclaimed_prompts`). They teach the routes' weights what not
    to listen to, as a class beside them whose own weights are dropped where `rows` have few base rows: they are not
    what the base will see. Held out in turn they help to place the threshold where rows are too few for `coverage`.

    Temperature, score and threshold are learned on `calibration` where given (rows of labels that `rows` lack
    and texts that `rows` hold are left out; or what was said of rows already), else on rows held out in turn; `seed`
    deals those. With an `encoder` its vectors are features too, each text encoded once.
    Raises `BadInput` listing every problem of the rows, and where nothing in scope is left to calibrate on,
    `ClassifierInvalid` where the head does not converge, and what `encoder.encode` raises.
    """
    distinct = distinct_rows(rows, coverage)
    encoded = encode_rows(distinct, encoder)
    cheaper = head == "centroids" or (head == "auto" and len({row.label for row in distinct}) > MANY_LABELS)
    taught = encode_rows([*_names(distinct), *(LabelledText(text, BASE) for text in sorted(set(general)))], encoder)
    has_base = BASE in encoded.labels and (not general or encoded.labels.count(BASE) >= ENOUGH_BASE_ROWS)
    fit = partial(_fit, fit_weights=fit_centroids if cheaper else fit_head, has_base=has_base)
    features, weights = fit(encoded, taught)
    strangers = None
    if isinstance(calibration, Calibration):
        judged = calibration
    elif calibration:
        fitted_on = {reading(text) for text in (*encoded.texts, *taught.texts)}
        fresh = [row for row in calibration if reading(row.text) not in fitted_on]
        judged = apply(features, weights, encode_rows(fresh, encoder))
        _require_in_scope(judged, len(calibration))
    else:
        judged, strangers = hold_out(encoded, taught, fit, seed)
    learned = learn_abstention(judged, coverage, strangers)
    summary = {
        "duplicates": len(rows) - len(distinct),
        "general_prompts": len(set(general)),
        **_summary(distinct, judged, learned),
        "coverage": coverage,
        "head": "centroids" if cheaper else "logistic",
    }
    classifier = _classifier(features, weights, learned, summary, encoded, encoder.ref if encoder else None)
    return Fitted(replace(classifier, digest=digest_of(classifier)), judged, strangers)


def _classifier(
    features: Features,
    weights: Head | PrunedHead,
    learned: Abstention,
    summary: Mapping[str, object],
    rows: EncodedRows,
    encoder: EncoderRef | None,
) -> Classifier:
    """Without its digest."""
    classifier = Classifier(
        features,
        weights,
        learned.temperature,
        learned.confidence,
        learned.score_name,
        learned.threshold or 0.0,
        {weights.labels[at]: threshold for at, threshold in learned.own_thresholds.items()},
        summary,
        row_keys(rows.rows),
        digest="",
        encoder=encoder,
    )
    if learned.threshold is None:
        return replace(classifier, threshold=_threshold_of_examples(classifier, rows))
    return classifier


def distinct_rows(rows: Sequence[LabelledText], coverage: float) -> list[LabelledText]:
    """Rows without repeats, in an order that does not depend on the given one. Raises `BadInput`."""
    labels = {BASE if row.label in NEGATIVE_LABELS else row.label for row in rows}
    problems: list[str] = []
    for label in sorted(labels - {BASE}):
        try:
            parse_route_name(label)
        except InvalidName as error:
            problems.append(error.message)
    if not rows:
        problems.append("no rows to fit on")
    elif labels == {BASE}:
        problems.append(f"all {len(rows)} rows are labelled base or oos: there is no route to tell apart")
    if not 0 < coverage < 1:
        problems.append(f"coverage {coverage} is not between 0 and 1")
    if problems:
        raise BadInput("; ".join(problems[:20]), hint="give rows {text, label}, label = a route's name, base or oos")
    pairs = {(BASE if row.label in NEGATIVE_LABELS else row.label, row.text) for row in rows}
    return [LabelledText(text, label) for label, text in sorted(pairs)]


def _require_in_scope(judged: Calibration, given: int) -> None:
    if judged.negative.all():
        raise BadInput(
            f"none of the {given} rows to calibrate on is of a route and new to the fit",
            hint="give rows that are not among the examples, or leave calibration to held-out rows",
        )


def _names(rows: Sequence[LabelledText]) -> list[LabelledText]:
    """The words of each route's name as an example of it, where there are routes to tell apart."""
    routes = sorted({row.label for row in rows} - {BASE})
    return [LabelledText(re.sub(r"[\W_]+", " ", route), route) for route in routes] if len(routes) > 1 else []


def _fit(
    rows: EncodedRows, taught: EncodedRows, fit_weights: FitWeights, has_base: bool
) -> tuple[Features, Head | PrunedHead]:
    every = joined(rows, taught)
    counts = Counter(every.labels)
    features = fit_features(every.texts, [counts[label] < FEW_EXAMPLES for label in every.labels])
    matrix = stack([features.transform(text) for text in every.texts], features.size)
    head = fit_weights(matrix, every.vectors, every.labels)
    return features, head if has_base else head.without(BASE)


def _summary(rows: Sequence[LabelledText], judged: Calibration, learned: Abstention) -> dict[str, object]:
    counts = Counter(row.label for row in rows)
    return {
        "routes": sorted(set(counts) - {BASE}),
        "rows": dict(sorted(counts.items())),
        "texts_in_two_labels": len(rows) - len({row.text for row in rows}),
        "rows_digest": hashlib.sha256(b"".join(row_digest(row) for row in rows)).hexdigest(),
        "calibration_rows": int((~judged.negative).sum()),
        "calibration_negatives": int(judged.negative.sum()),
        "held_out_accuracy": judged.accuracy,
        "temperature": learned.temperature,
        "confidence": asdict(learned.confidence),
        "score": learned.score_name,
        "threshold": learned.threshold,
        "own_thresholds": len(learned.own_thresholds),
        "coverage_holds": learned.holds,
    }


def _threshold_of_examples(classifier: Classifier, rows: EncodedRows) -> float:
    return SHARE_WITHOUT_CALIBRATION * min(
        classifier.scores(row.text, rows.vector(at)).score for at, row in enumerate(rows.rows) if row.label != BASE
    )
