"""Texts: examples of routes, corrections that programs proposed and those in force, and forgetting them all."""

from __future__ import annotations

from dataclasses import asdict

from adapters import corrections, examples, feedback
from adapters.exemplars import BASE_LABEL
from adapters.forget import forget_texts
from adapters.records import event_row
from adapters.types import parse_route_name

from ..errors import InvalidRequest
from .bodies import Because, Chosen, Correction, CorrectionFilter, NewExamples, OldExamples, Removed, Waits
from .documents import done
from .operation import Answer, Asked, Operation
from .routes import SOURCE, require_no_collisions


def _examples(asked: Asked) -> Answer:
    return Answer({"examples": [{"text": text} for text in examples.examples_of(asked.registry, asked.route)]})


def _add(asked: Asked) -> Answer:
    wanted: NewExamples = asked.body
    examples.require_texts(wanted.texts)
    route = asked.registry.route(asked.route).name
    require_no_collisions(asked, route, wanted)
    change = examples.add_examples(asked.registry, route, wanted.texts, source=SOURCE, why=wanted.force)
    return done(change.event, added=change.event.payload["added"])


def _remove(asked: Asked) -> Answer:
    wanted: OldExamples = asked.body
    change = examples.remove_examples(asked.registry, asked.route, wanted.texts)
    return done(change.event, removed=change.event.payload["removed"])


def _corrections(asked: Asked) -> Answer:
    wanted: CorrectionFilter = asked.query
    if wanted.state == "in_force":
        acting = corrections.corrections_in_force(asked.registry)
        rows = [asdict(one) for one in acting if wanted.source in (None, one.source)]
    else:
        rows = [asdict(one) for one in feedback.waiting_feedback(asked.registry, feedback.Choice(source=wanted.source))]
    return Answer({"corrections": [{"route": row.pop("label"), **row} for row in rows]})


def _correct(asked: Asked) -> Answer:
    wanted: Correction = asked.body
    label = wanted.route if wanted.route == BASE_LABEL else parse_route_name(wanted.route)
    return _corrected(corrections.correct(asked.registry, label, wanted.texts, why=wanted.why))


def _accept(asked: Asked) -> Answer:
    return _corrected(feedback.accept_feedback(asked.registry, _choice(asked.body), why=asked.body.why))


def _corrected(found: corrections.Corrected) -> Answer:
    event = None if found.event is None else event_row(found.event)
    document = {"event": event, "added": found.added, "known": found.known, "lost": found.lost}
    return Answer(document, serial=None if found.event is None else found.event.serial)


def _reject(asked: Asked) -> Answer:
    return Answer({"rejected": feedback.reject_feedback(asked.registry, _choice(asked.body), why=asked.body.why)})


def _choice(wanted: Chosen) -> feedback.Choice:
    if sum([bool(wanted.ids), wanted.source is not None, wanted.all]) != 1:
        raise InvalidRequest("expected exactly one of 'ids', 'source' and 'all'", param="ids")
    return feedback.Choice(tuple(wanted.ids), wanted.source)


def _take_back(asked: Asked) -> Answer:
    wanted: Removed = asked.body
    return Answer({"removed": corrections.remove_corrections(asked.registry, wanted.digests, why=wanted.why)})


def _forget(asked: Asked) -> Answer:
    found = forget_texts(asked.registry, asked.route, why=asked.body.why)
    counts = {"examples": found.examples, "corrections": found.corrections, "feedback": found.feedback}
    left = found.unscrubbed is not None
    return done(found.event, **counts, bytes_remain=left)


def _post(name: str, path: str, summary: str, act: object, body: object, *, follows: bool = False) -> Operation:
    return Operation(
        name,
        "POST",
        path,
        "operator",
        summary,
        act,  # type: ignore[arg-type]  # each of the functions above
        body,  # type: ignore[arg-type]
        Waits,
        follows="exemplars" if follows else None,
        of_route="{route}" in path,
    )


TEXTS = (
    Operation(
        "list_examples", "GET", "/routes/{route}/examples", "operator", "A route's examples.", _examples, of_route=True
    ),
    _post("add_examples", "/routes/{route}/examples", "Add examples to a route.", _add, NewExamples, follows=True),
    _post(
        "remove_examples",
        "/routes/{route}/examples/remove",
        "Delete examples of a route for good.",
        _remove,
        OldExamples,
        follows=True,
    ),
    Operation(
        "list_corrections",
        "GET",
        "/corrections",
        "operator",
        "Corrections that wait for an operator, or those in force.",
        _corrections,
        query=CorrectionFilter,
    ),
    _post(
        "correct", "/corrections", "Say that texts belong to a route, or to `base`.", _correct, Correction, follows=True
    ),
    _post(
        "accept_corrections",
        "/corrections/accept",
        "Put proposed corrections in force.",
        _accept,
        Chosen,
        follows=True,
    ),
    _post("reject_corrections", "/corrections/reject", "Delete proposed corrections.", _reject, Chosen),
    _post("remove_corrections", "/corrections/remove", "Take corrections in force back.", _take_back, Removed),
    Operation(
        "forget_route",
        "POST",
        "/routes/{route}/forget",
        "admin",
        "Delete all texts given for a route (or for `base`) for good. Its versions and history stay.",
        _forget,
        Because,
        Waits,
        of_route=True,
        again=True,
        follows="exemplars",
    ),
)
