"""The admin API on the wire: each operation of the table becomes an endpoint, all of them in one way.

1. The key must have the role, and the route where it may use only some; then its limits apply.
2. Path, headers, query and body are read and checked before the registry is asked.
3. The work is done in a thread, once where the request has an Idempotency-Key.
4. With `?wait=SECONDS` the answer tells which gateways follow.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from adapters.convergence import Convergence, wait_exemplars, wait_in_force
from adapters.errors import RegistryUnavailable
from adapters.exemplars import exemplars_of
from adapters.registry import Registry
from adapters.repeats import Request as Repeat
from adapters.store import Store

from ..errors import AdapterUnavailable, AdminOverloaded, StillRunning
from ..keys.limits import Limits
from ..keys.principal import Principal
from ..settings import Settings
from . import reading
from .bodies import Waits
from .desk import Desk
from .documents import convergence_document
from .operation import Asked, Operation, Place
from .outcome import Outcome
from .table import OPERATIONS, path_of
from .working import work, work_once

POLL_SECONDS = 0.01
REPEAT_SECONDS = 10.0
IN_FORCE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Admin:
    """What the admin API is made of. `port` is its own, `None` where it shares the gateway's."""

    desk: Desk
    place: Place
    port: int | None = None

    @classmethod
    def of(cls, settings: Settings, bound: Sequence[socket.socket]) -> Admin:
        """For a gateway that listens on `bound`; the second socket, if there is one, is for operators."""
        place = Place(settings.home, settings.engine.base, settings.admin.lora_folders)
        port: int | None = bound[1].getsockname()[1] if len(bound) > 1 else None
        return cls(Desk(settings.home), place, port)


def admin_routes(admin: Admin, limits: Limits, max_body_bytes: int) -> APIRouter:
    """An endpoint for each operation of the table."""
    router = APIRouter()
    for operation in OPERATIONS:
        endpoint = _endpoint(operation, admin, limits, max_body_bytes)
        router.add_api_route(path_of(operation), endpoint, methods=[operation.method], name=operation.name)
    return router


def actor_of(principal: Principal) -> str:
    """Who acts, as the audit trail names it."""
    return f"key:{principal.name}"


def _endpoint(
    operation: Operation, admin: Admin, limits: Limits, max_body_bytes: int
) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        principal: Principal = request.state.principal
        reading.require_right(principal, operation, request.path_params.get("route", ""))
        admission = request.state.admission = limits.admit(principal)
        try:
            raw = await reading.read_raw(request, max_body_bytes) if operation.writes else b"{}"
            return await _Serving(operation, admin, principal, request, raw).answer()
        finally:
            admission.ended()

    return serve


class _Serving:
    """One request. Raises what reading it and doing it raises."""

    def __init__(self, operation: Operation, admin: Admin, principal: Principal, request: Request, raw: bytes) -> None:
        self._began = time.monotonic()
        self._operation = operation
        self._admin = admin
        self._actor = actor_of(principal)
        self._raw = raw
        self._repeat = _repeat_of(operation, principal, request, raw)
        self._query = reading.read_query(operation, request)
        self._path = request.path_params
        self._route = reading.read_route(operation, self._path.get("route", ""))
        self._number = reading.read_number(self._path.get("number"))
        self._expected = reading.read_expected(operation, request.headers)
        self._forced = reading.read_force(request.headers)

    async def answer(self) -> Response:
        outcome = await self._outcome()
        document = outcome.document
        if isinstance(document, str):
            await self._require_in_force(outcome)
            return PlainTextResponse(document, outcome.status)
        wait = self._query.wait if isinstance(self._query, Waits) else None
        if wait is not None and outcome.serial is not None:
            document = {**document, "in_force": convergence_document(await self._followed(outcome, wait))}
        headers = {"cache-control": "no-store"} | ({} if outcome.etag is None else {"etag": outcome.etag})
        return JSONResponse(document, outcome.status, headers=headers)

    async def _outcome(self) -> Outcome:
        deadline = time.monotonic() + REPEAT_SECONDS
        while (outcome := await self._admin.desk.do(self._work)) is None:
            if time.monotonic() > deadline:
                raise StillRunning("the request of this Idempotency-Key is being worked on; ask again later")
            await asyncio.sleep(POLL_SECONDS)
        return outcome

    def _work(self, registry: Registry, store: Store) -> Outcome | None:
        ask = partial(self._asked, store, reading.parse_body(self._operation, self._raw))
        if self._repeat is None:
            return work(self._operation, ask, registry, self._actor)
        return work_once(self._operation, ask, registry, self._actor, self._repeat)

    def _asked(self, store: Store, body: object, registry: Registry) -> Asked:
        return Asked(
            registry,
            store,
            self._admin.place,
            self._route,
            self._number,
            self._path.get("name", ""),
            self._query,
            body,
            self._expected,
            self._forced,
        )

    async def _followed(self, outcome: Outcome, seconds: float) -> Convergence:
        """Who follows, after at most `seconds`; no thread is kept waiting.

        The change is made: that nobody can look whether it is in force is a problem to be told, and no failure.
        """
        deadline = self._began + seconds
        while True:
            try:
                found = await self._admin.desk.do(partial(self._look, outcome))
            except (AdminOverloaded, RegistryUnavailable) as error:
                found = Convergence((), {"registry": error.message}, (time.monotonic() - self._began) * 1000)
            if not found.problems or time.monotonic() >= deadline:
                return found
            await asyncio.sleep(POLL_SECONDS)

    def _look(self, outcome: Outcome, registry: Registry, _store: Store) -> Convergence:
        serial = outcome.serial or 0
        if self._operation.follows == "exemplars":
            digest = exemplars_of(registry).digest
            return wait_exemplars(registry, serial, digest, started=self._began, timeout_seconds=0)
        return wait_in_force(registry, serial, route=outcome.route, started=self._began, timeout_seconds=0)

    async def _require_in_force(self, outcome: Outcome) -> None:
        """What is answered as a text is answered when it is so, as vLLM does."""
        if outcome.serial is None:
            return
        found = await self._followed(outcome, IN_FORCE_SECONDS)
        if found.problems:
            raise AdapterUnavailable(f"it is registered, but not {found}")


def _repeat_of(operation: Operation, principal: Principal, request: Request, raw: bytes) -> Repeat | None:
    key = reading.read_repeat_key(operation, request.headers)
    if key is None:
        return None
    headers = (request.headers.get(name, "") for name in ("if-match", reading.FORCE_HEADER))
    said = "\n".join([request.method, request.url.path, *headers, ""]).encode() + raw
    return Repeat(principal.key_id or principal.name, key, hashlib.sha256(said).hexdigest())
