"""Classifiers: list, promote through the gate, roll back."""

from __future__ import annotations

from dataclasses import asdict

from adapters.classifier_gate import ClassifierPolicy
from adapters.classifier_promotion import promote_through_gate
from adapters.classifiers import rollback_classifier

from .bodies import Because, ClassifierPromotion, Waits
from .documents import done
from .operation import Answer, Asked, Operation


def _list(asked: Asked) -> Answer:
    live = asked.registry.classifier_state().live
    versions = asked.registry.classifiers()
    return Answer({"classifiers": [{**asdict(one), "live": one.number == live} for one in versions]})


def _promote(asked: Asked) -> Answer:
    wanted: ClassifierPromotion = asked.body
    policy = ClassifierPolicy(wanted.min_items, wanted.max_loss, wanted.max_base_loss, wanted.max_route_loss)
    found = promote_through_gate(
        asked.registry, asked.store, asked.number, policy=policy, forced=wanted.force, why=wanted.why
    )
    return done(found.event, replaced=found.replaced, unmet=list(found.verdict.unmet))


def _rollback(asked: Asked) -> Answer:
    return done(rollback_classifier(asked.registry, why=asked.body.why))


CLASSIFIERS = (
    Operation("list_classifiers", "GET", "/classifiers", "operator", "Published classifiers.", _list),
    Operation(
        "promote_classifier",
        "POST",
        "/classifiers/{number}/promote",
        "operator",
        "Make a classifier the one in use, if its evidence passes the promotion gate.",
        _promote,
        ClassifierPromotion,
        Waits,
        follows="events",
    ),
    Operation(
        "rollback_classifier",
        "POST",
        "/classifiers/rollback",
        "operator",
        "Go back to the classifier that was in use before.",
        _rollback,
        Because,
        Waits,
        follows="events",
    ),
)
