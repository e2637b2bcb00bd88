"""From a fit to the registry: the artifact, its held-out decisions as evidence, and on request the promotion."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click

from adapters.classifier_evidence import ClassifierEvidence, DecidedItem, distinct_items
from adapters.classifier_gate import ClassifierPolicy
from adapters.classifier_promotion import ClassifierPromotion, promote_through_gate
from adapters.classifiers import add_classifier_evidence, publish_classifier
from adapters.command import open_home
from adapters.errors import GateRefused
from adapters.gate import Verdict
from adapters.home import Home
from adapters.output import note, print_table
from adapters.rows import sha256_json, text_digest

from ..classify.artifact import save_classifier

if TYPE_CHECKING:
    from ..classify.fit import Fitted


def publish_fitted(home: Home, fitted: Fitted) -> int:
    """Publish a fit with its evidence; returns its number. The same fit again has the number that it has."""
    from ..classify.encoder.opening import encoder_cache, store_tuned

    registry, store = open_home(home)
    classifier = fitted.classifier
    store_tuned(classifier.encoder, encoder_cache(home), store)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "classifier"
        save_classifier(classifier, folder)
        version = publish_classifier(registry, store, folder, digest=classifier.digest, summary=classifier.summary)
    add_classifier_evidence(registry, store, version, held_out_evidence(fitted))
    return version.number


def held_out_evidence(fitted: Fitted) -> ClassifierEvidence:
    """What was said of the rows that the fit held out: by weights that never saw them, under the final threshold.

    That threshold was learned on these very rows, in the live classifier's evidence as well.
    """
    items = distinct_items(
        [
            DecidedItem(text_digest(row.text), row.label, None if one.abstains else one.route, one.score)
            for row, one in fitted.held_out
        ]
    )
    digest = sha256_json(sorted([item.row, item.label] for item in items))
    return ClassifierEvidence(fitted.classifier.digest, "held_out", "held-out rows", digest, items)


def promote_fitted(home: Home, number: int, forced: str | None = None) -> ClassifierPromotion | None:
    """Promote through the gate; `None` where it is live already. Raises `GateRefused`, and it stays published."""
    registry, store = open_home(home)
    if registry.classifier_state().live == number:
        return None
    why = "classifier fit --promote"
    try:
        return promote_through_gate(registry, store, number, policy=ClassifierPolicy(), forced=forced, why=why)
    except GateRefused:
        note(f"classifier {number} is published and not live")
        raise


def print_promotion(done: ClassifierPromotion) -> None:
    """What the gate had found, and that it is live."""
    for unmet in done.verdict.unmet:
        note(f"forced over: {unmet}")
    comparison = _comparison(done.verdict)
    if done.replaced is not None and comparison:
        header = ["measure", "items", f"live {done.replaced}", f"now {done.event.number}", "difference, at least"]
        print_table(header, comparison)
    first = "; it is the first: nothing to compare it with" if done.replaced is None else ""
    click.echo(f"classifier {done.event.number} is live (serial {done.event.serial}){first}")


def _comparison(verdict: Verdict) -> list[list[object]]:
    numbers = verdict.numbers
    return [
        [
            what.replace("_", " "),
            f"{numbers[f'common_{items}']:.0f}",
            *(f"{numbers[name]:.4f}" for name in (f"live_{what}", f"common_{what}")),
            f"{numbers[f'{what}_bound']:+.4f}",
        ]
        for what, items in (("accuracy", "items"), ("base_recall", "base_items"))
        if f"{what}_bound" in numbers
    ]
