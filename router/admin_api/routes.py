"""Routes: list, show, create, change; promote, roll back, disable and enable them."""

from __future__ import annotations

from typing import Any

from adapters import examples
from adapters.example_checks import check_examples
from adapters.promotion import promote
from adapters.records import event_row
from adapters.types import Event, parse_route_name

from .bodies import Because, NewRoute, Page, Promotion, Rollback, RouteChange, Waits
from .documents import changed, route_document
from .operation import Answer, Asked, Document, Operation

SOURCE = "admin API"


def _list(asked: Asked) -> Answer:
    return Answer({"routes": [route_document(state) for state in asked.registry.routes()]})


def _show(asked: Asked) -> Answer:
    state = asked.registry.route(asked.route)
    return Answer(route_document(state), revision=state.revision)


def _create(asked: Asked) -> Answer:
    wanted: NewRoute = asked.body
    examples.require_texts(wanted.examples)
    name = parse_route_name(wanted.name)
    if wanted.examples:
        require_no_collisions(asked, name, wanted)
    change = asked.registry.create_route(name, description=wanted.description)
    if wanted.examples:
        change = examples.add_examples(asked.registry, name, wanted.examples, source=SOURCE, why=wanted.force)
    answer = changed(change)
    return Answer(answer.document, 201, change.state.revision, change.event.serial, name)


def require_no_collisions(asked: Asked, route: str, wanted: Any) -> None:
    """Raise `Refused` where the examples `wanted` would take too much from another route. What else the checks say
    quotes examples, and is said to nobody.
    """
    texts = wanted.examples if isinstance(wanted, NewRoute) else wanted.texts
    check_examples(asked.registry, route, texts, max_loss=wanted.max_loss, forced=wanted.force, say=_unsaid)


def _unsaid(_line: str) -> None:
    """Takes what a terminal would show."""


def _change(asked: Asked) -> Answer:
    wanted: RouteChange = asked.body
    return changed(
        asked.registry.change_route(
            asked.route, policy=wanted.policy, description=wanted.description, expected_revision=asked.expected
        )
    )


def _promote(asked: Asked) -> Answer:
    wanted: Promotion = asked.body
    done = promote(
        asked.registry,
        asked.store,
        asked.route,
        wanted.version,
        forced=wanted.force,
        expected_revision=asked.expected,
    )
    return changed(done.change, unmet=list(done.verdict.unmet))


def _rollback(asked: Asked) -> Answer:
    wanted: Rollback = asked.body
    return changed(asked.registry.rollback(asked.route, to=wanted.to, why=wanted.why, expected_revision=asked.expected))


def _disable(asked: Asked) -> Answer:
    return changed(asked.registry.disable(asked.route, why=asked.body.why, expected_revision=asked.expected))


def _enable(asked: Asked) -> Answer:
    return changed(asked.registry.enable(asked.route, why=asked.body.why, expected_revision=asked.expected))


def _history(asked: Asked) -> Answer:
    asked.registry.route(asked.route)
    page: Page = asked.query
    found = asked.registry.events(after=page.after, route=asked.route, limit=page.limit)
    return Answer(events_page(found, page))


def events_page(found: list[Event], page: Page) -> Document:
    """`next` is what to ask for `after` this page, `null` where it was the last."""
    following = found[-1].serial if len(found) == page.limit else None
    return {"events": [event_row(event) for event in found], "next": following}


def _action(name: str, summary: str, act: Any, body: Any) -> Operation:
    return Operation(
        f"{name}_route",
        "POST",
        f"/routes/{{route}}/{name}",
        "operator",
        summary,
        act,
        body,
        Waits,
        of_route=True,
        conditional=True,
        follows="events",
    )


ROUTES = (
    Operation("list_routes", "GET", "/routes", "operator", "All routes.", _list),
    Operation(
        "create_route",
        "POST",
        "/routes",
        "operator",
        "Create a route, which has no versions yet.",
        _create,
        NewRoute,
        status=(201,),
    ),
    Operation("show_route", "GET", "/routes/{route}", "operator", "What is wanted of a route.", _show, of_route=True),
    Operation(
        "change_route",
        "PATCH",
        "/routes/{route}",
        "operator",
        "Change a route's policy or description.",
        _change,
        RouteChange,
        Waits,
        of_route=True,
        conditional=True,
        follows="events",
    ),
    _action("promote", "Make a version live, if its evidence passes the promotion gate.", _promote, Promotion),
    _action("rollback", "Bring back the version that was live before.", _rollback, Rollback),
    _action("disable", "Send the route's traffic to the base.", _disable, Because),
    _action("enable", "Give the route's traffic back to its live version.", _enable, Because),
    Operation(
        "route_events",
        "GET",
        "/routes/{route}/events",
        "operator",
        "A route's history, a page of it.",
        _history,
        query=Page,
        of_route=True,
    ),
)
