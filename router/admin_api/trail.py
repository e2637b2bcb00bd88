"""What is in force on each gateway, and the audit trail: who did what, when, and why."""

from __future__ import annotations

from adapters.classifiers import live_classifier

from .bodies import Page
from .documents import gateway_document
from .operation import Answer, Asked, Operation
from .routes import events_page


def _gateways(asked: Asked) -> Answer:
    names = {(one.route, one.number): one.engine_name for one in asked.registry.versions()}
    wanted: dict[str, str | None] = {
        state.name: names.get((state.name, state.live)) if state.enabled and state.live is not None else None
        for state in asked.registry.routes()
    }
    classifier = live_classifier(asked.registry)
    document = {
        "serial": asked.registry.serial(),
        "wanted": wanted,
        "classifier_wanted": None if classifier is None else classifier.digest,
        "gateways": [gateway_document(row, wanted) for row in asked.registry.gateways()],
    }
    return Answer(document)


def _events(asked: Asked) -> Answer:
    page: Page = asked.query
    return Answer(events_page(asked.registry.events(after=page.after, limit=page.limit), page))


TRAIL = (
    Operation(
        "gateways", "GET", "/gateways", "operator", "What each gateway has in force, and what is wanted.", _gateways
    ),
    Operation("events", "GET", "/events", "operator", "The audit trail, a page of it.", _events, query=Page),
)
