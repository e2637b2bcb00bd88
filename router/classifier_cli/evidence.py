"""From a classifier's decisions on labelled rows to evidence in the registry, the live one's beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adapters.classifier_evidence import NEGATIVE_LABELS, ClassifierEvidence, DecidedItem, distinct_items
from adapters.classifier_gate import ClassifierPolicy
from adapters.classifier_promotion import examine_classifier
from adapters.classifiers import add_classifier_evidence, classifier_evidence, classifier_version
from adapters.command import open_home
from adapters.errors import InvalidName, Refused
from adapters.home import Home
from adapters.registry import Registry
from adapters.rows import LabelledText, sha256_file, text_digest
from adapters.store import Store

from ..classify.classifier import BASE, Classifier
from ..classify.features import reading
from ..types import Scores
from .choice import Chosen, choose_classifier


@dataclass(frozen=True, slots=True)
class Filed:
    """Evidence `digest` for classifier `number`; `unmet`: what the promotion gate would say of it now.

    `live` is the live classifier that was judged on the same rows, `None` where there is no other.
    """

    number: int
    digest: str
    is_live: bool
    live: int | None
    unmet: tuple[str, ...]
    numbers: dict[str, float]


def file_evidence(
    home: Home,
    chosen: Chosen,
    file: Path,
    rows: Sequence[LabelledText],
    scores: Sequence[Scores],
    encoder: str | None = None,
) -> Filed:
    """File the decisions `scores` on the `rows` of `file`, and the live classifier's where it has none on them yet.

    `encoder` is where the live classifier's encoder is found.
    Raises `InvalidName` for a classifier that is not published, `Refused` where it was fitted on some of the rows.
    """
    if chosen.number is None:
        raise InvalidName("evidence is about published classifiers", hint="give --classifier a number")
    registry, store = open_home(home)
    items = decided_items(chosen.classifier, rows, scores)
    seen = sum(item.seen for item in items)
    if seen:
        raise Refused(
            f"classifier {chosen.number} was fitted on {seen} of the {len(items)} rows of {file.name}",
            hint="evaluate on rows that were held out",
        )
    version = classifier_version(registry, chosen.number)
    evidence = ClassifierEvidence(chosen.classifier.digest, "file", file.name, sha256_file(file), items)
    digest = add_classifier_evidence(registry, store, version, evidence)
    state = registry.classifier_state()
    is_live = state.live == chosen.number
    live = None if is_live else state.live
    if live is not None and not _has_evidence(registry, store, live, evidence):
        other = choose_classifier(home, str(live), encoder)
        theirs = decided_items(other.classifier, rows, other.score([row.text for row in rows]))
        about_live = replace(evidence, classifier_digest=other.classifier.digest, items=theirs)
        add_classifier_evidence(registry, store, classifier_version(registry, live), about_live)
    verdict = examine_classifier(registry, store, state, chosen.number, ClassifierPolicy())
    return Filed(chosen.number, digest, is_live, live, verdict.unmet, verdict.numbers)


def decided_items(
    classifier: Classifier, rows: Sequence[LabelledText], scores: Sequence[Scores]
) -> tuple[DecidedItem, ...]:
    """Row by row what was decided; of rows with one `reading` and one label the last stays."""
    return distinct_items(
        [
            DecidedItem(
                text_digest(reading(row.text)),
                row.label,
                None if one.abstains else one.route,
                one.score,
                classifier.has_row(BASE if row.label in NEGATIVE_LABELS else row.label, row.text),
            )
            for row, one in zip(rows, scores, strict=True)
        ]
    )


def _has_evidence(registry: Registry, store: Store, number: int, like: ClassifierEvidence) -> bool:
    known = classifier_evidence(registry, store, classifier_version(registry, number))
    return any(one.source == like.source and one.rows_digest == like.rows_digest for one in known)
