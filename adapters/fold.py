"""State as a fold of events: pure functions, the only place that says what an event does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace

from .keys import ROLES, ApiKey, KeyLimits
from .types import KEY_EVENTS, ClassifierState, Event, RouteName, RouteState


def apply_to_route(state: RouteState | None, event: Event) -> RouteState:
    """The route's state after `event`, which is one of its own. `state` is `None` before `route_created`."""
    if state is None:
        if event.kind != "route_created" or event.route is None:
            raise ValueError(f"event {event.serial} ({event.kind}) comes before its route was created")
        return _changed(RouteState(name=event.route), event.payload)
    match event.kind:
        case "route_changed":
            return _changed(replace(state, revision=state.revision + 1), event.payload)
        case "examples_changed" | "route_forgotten":
            return _changed(state, event.payload)
        case "published":
            return replace(state, latest=_number(event))
        case "promoted":
            return _live(state, (*state.stack, _number(event)))
        case "rolled_back":
            return _live(state, rolled_back_stack(state, _number(event)))
        case "disabled" | "enabled":
            return replace(state, revision=state.revision + 1, enabled=event.kind == "enabled")
        case "retired":
            return replace(state, revision=state.revision + 1, retired=state.retired | {_number(event)})
        case _:
            return state


def rolled_back_stack(state: RouteState, target: int) -> tuple[int, ...]:
    """The stack after a rollback to `target`, which is neither live nor retired: all above its last place is popped.

    A target that was live once but has been popped since takes the place of what is live now.
    """
    if target in state.stack:
        above = state.stack[::-1].index(target)
        return state.stack[: len(state.stack) - above]
    return (*state.stack[: _place_of_live(state)], target)


def _place_of_live(state: RouteState) -> int:
    return max((place for place, number in enumerate(state.stack) if number not in state.retired), default=0)


def apply_to_classifier(state: ClassifierState, event: Event) -> ClassifierState:
    """The classifier's state after `event`; events of other kinds change nothing."""
    match event.kind:
        case "classifier_published":
            return replace(state, latest=_number(event))
        case "classifier_promoted":
            return replace(state, stack=(*state.stack, _number(event)))
        case "classifier_rolled_back":
            return replace(state, stack=state.stack[:-1])
        case _:
            return state


def fold_routes(events: Iterable[Event]) -> dict[RouteName, RouteState]:
    """Every route's state from the whole history, in serial order."""
    states: dict[RouteName, RouteState] = {}
    for event in events:
        if event.route is not None:
            states[event.route] = apply_to_route(states.get(event.route), event)
    return states


def fold_classifier(events: Iterable[Event]) -> ClassifierState:
    """The classifier's state from the whole history, in serial order."""
    state = ClassifierState()
    for event in events:
        state = apply_to_classifier(state, event)
    return state


def apply_to_keys(keys: Mapping[str, ApiKey], event: Event) -> Mapping[str, ApiKey]:
    """All keys by id after `event`, without their digests; events of other kinds change nothing."""
    if event.kind not in KEY_EVENTS:
        return keys
    known = str(event.payload["id"])
    if event.kind == "key_revoked":
        return {**keys, known: replace(keys[known], revoked_at=event.time)}
    routes, limits = event.payload["routes"], event.payload["limits"]
    allowed = frozenset(str(one) for one in routes) if isinstance(routes, list) else None
    found = KeyLimits(**limits) if isinstance(limits, dict) else KeyLimits()
    if event.kind == "key_changed":
        return {**keys, known: replace(keys[known], routes=allowed, limits=found)}
    role = next(role for role in ROLES if role == event.payload["role"])
    return {**keys, known: ApiKey(known, str(event.payload["name"]), role, allowed, found, event.time)}


def fold_keys(events: Iterable[Event]) -> Mapping[str, ApiKey]:
    """Every key by id from the whole history, in serial order."""
    keys: Mapping[str, ApiKey] = {}
    for event in events:
        keys = apply_to_keys(keys, event)
    return keys


def route_to_json(state: RouteState) -> dict[str, object]:
    """A route's state as plain JSON values; `route_from_json` is the inverse."""
    return {
        **asdict(state),
        "policy": dict(state.policy),
        "stack": list(state.stack),
        "ever_live": sorted(state.ever_live),
        "retired": sorted(state.retired),
    }


def route_from_json(value: Mapping[str, object]) -> RouteState:
    fields = dict(value)
    stack, ever_live, retired = (fields.pop(name) for name in ("stack", "ever_live", "retired"))
    return RouteState(
        **fields,  # type: ignore[arg-type]  # written by route_to_json in the same transaction as its event
        stack=_numbers(stack),
        ever_live=frozenset(_numbers(ever_live)),
        retired=frozenset(_numbers(retired)),
    )


def _numbers(value: object) -> tuple[int, ...]:
    return tuple(int(one) for one in value) if isinstance(value, list) else ()


def _number(event: Event) -> int:
    if event.number is None:
        raise ValueError(f"event {event.serial} ({event.kind}) names no version")
    return event.number


def _live(state: RouteState, stack: tuple[int, ...]) -> RouteState:
    return replace(state, revision=state.revision + 1, stack=stack, ever_live=state.ever_live | {stack[-1]})


def _changed(state: RouteState, payload: Mapping[str, object]) -> RouteState:
    policy, description = payload.get("policy"), payload.get("description")
    if isinstance(policy, dict):
        state = replace(state, policy=policy)
    if isinstance(description, str):
        state = replace(state, description=description)
    if "examples_digest" in payload:
        digest = payload["examples_digest"]
        state = replace(state, examples_digest=digest if isinstance(digest, str) else None)
    return state
