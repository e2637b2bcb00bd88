"""One operation done: at most once where its request has an Idempotency-Key. Runs in the desk's threads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from adapters import repeats
from adapters.errors import BranchlineError, Conflict, NotFound
from adapters.records import event_row
from adapters.registry import Registry

from ..errors import KeyReused, PreconditionFailed, wire_for
from .documents import route_document
from .operation import Answer, Asked, Operation
from .outcome import Outcome, etag_of

Ask = Callable[[Registry], Asked]


def work(operation: Operation, ask: Ask, registry: Registry, actor: str) -> Outcome:
    """Do it. Raises what it raises, and `PreconditionFailed` where the route is at another revision."""
    return Outcome.of(_act(operation, ask(registry.acting_as(actor))))


def work_once(
    operation: Operation, ask: Ask, registry: Registry, actor: str, request: repeats.Request
) -> Outcome | None:
    """Do it, or answer what it came to before; `None` while another is at it.

    A refusal is kept as well as an answer; a failure is not, so that it can be tried again. Raises `KeyReused`.
    """
    taken = repeats.claim(registry, request, again=operation.again)
    if taken.found == "running":
        return None
    if taken.found == "other":
        raise KeyReused("this Idempotency-Key stood for another request", hint="use a new key for each request")
    if taken.found == "answered":
        return Outcome.from_text(taken.answer)
    if taken.found == "lost":
        return _recovered(registry, taken.serial)
    try:
        answer = _act(operation, ask(registry.acting_as(actor, beside=taken.beside)))
    except BranchlineError as error:
        if wire_for(error).status < 500:
            repeats.file_answer(registry, taken, Outcome.of_error(error).to_text())
        else:
            repeats.give_up(registry, taken)
        raise
    except BaseException:
        repeats.give_up(registry, taken)
        raise
    kept = answer if answer.kept is None else replace(answer, document=answer.kept)
    repeats.file_answer(registry, taken, Outcome.of(kept).to_text())
    return Outcome.of(answer)


def _act(operation: Operation, asked: Asked) -> Answer:
    try:
        return operation.act(asked)
    except Conflict as error:
        if asked.expected is None:
            raise
        revision = asked.registry.route(asked.route).revision
        raise PreconditionFailed(error.message, hint=error.hint, headers={"etag": etag_of(revision)}) from error


def _recovered(registry: Registry, serial: int) -> Outcome:
    """What is known of a request that was done by who died before it could answer: its last event."""
    event = next(iter(registry.events(after=serial - 1, limit=1)))
    document: dict[str, object] = {"recovered": True, "event": event_row(event)}
    try:
        state = registry.route(event.route or "")
    except NotFound:
        return Outcome(200, document, serial=serial)
    return Outcome(200, {**route_document(state), **document}, etag_of(state.revision), serial, state.name)
