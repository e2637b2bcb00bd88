"""`POST /v1/feedback`: a program proposes where a text belongs. It waits in the registry until an operator accepts.

Writing is done in a thread of its own over a connection of its own: a registry that is locked, slow or gone refuses
feedback and disturbs nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapters.decisions import REQUEST_ID, find_text
from adapters.errors import BadInput, InvalidName, NotFound, RegistryUnavailable
from adapters.exemplars import BASE_LABEL
from adapters.feedback import queue_feedback
from adapters.journal import Journal
from adapters.types import parse_route_name

from ..errors import FeedbackOverloaded, Forbidden, InvalidRequest
from ..keys.principal import ANONYMOUS, Principal
from ..wire import parse_object

MAX_BODY_BYTES = 256 * 1024
MAX_TEXT_CHARACTERS = 32_768  # as much as the decision log keeps
MAX_PENDING = 32
TIMEOUT_SECONDS = 10.0
BUSY_TIMEOUT_MS = 1000
MAX_SEARCH_BYTES = 512 * 1024 * 1024
log = logging.getLogger("branchline.feedback")
_FIELDS = {"route", "text", "request_id", "user"}


@dataclass(frozen=True, slots=True)
class Proposal:
    """That a text belongs to `label`, a route or `base`: the text itself, or the id of the request that brought it."""

    label: str
    text: str | None
    request_id: str | None
    source: str


class Feedback:
    """`decision_log` is the log where texts can be found, `None` where none are kept."""

    def __init__(self, registry_url: str, decision_log: Path | None) -> None:
        self._registry_url = registry_url
        self._decision_log = decision_log
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="feedback")
        self._pending = 0

    async def queue(self, proposal: Proposal) -> None:
        """Have it wait for review. Raises `FeedbackOverloaded`, `QueueFull`, `NotFound`, `RegistryUnavailable`, …"""
        if proposal.request_id is not None and self._decision_log is None:
            raise InvalidRequest(
                "this gateway keeps no texts of requests: send 'text'", param="request_id", code="no_text_kept"
            )
        if self._pending >= MAX_PENDING:
            raise FeedbackOverloaded(f"{MAX_PENDING} proposals are being written already")
        self._pending += 1
        work = asyncio.get_running_loop().run_in_executor(self._thread, partial(self._write, proposal))
        work.add_done_callback(self._done)
        try:
            await asyncio.wait_for(asyncio.shield(work), TIMEOUT_SECONDS)
        except TimeoutError:
            raise RegistryUnavailable("the registry does not answer", hint="check the database") from None

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _done(self, work: asyncio.Future[None]) -> None:
        self._pending -= 1
        if not work.cancelled():
            work.exception()  # nobody waits any more where the time was over

    def _write(self, proposal: Proposal) -> None:
        text = self._logged_text(proposal.request_id) if proposal.text is None else proposal.text
        try:
            journal = Journal.open_existing(self._registry_url, actor="gateway", busy_timeout_ms=BUSY_TIMEOUT_MS)
            try:
                queue_feedback(journal, proposal.label, text, source=proposal.source)
            finally:
                journal.close()
        except RegistryUnavailable as error:  # its reason may name hosts and files
            log.warning("feedback could not be queued: %s", error.message)
            raise RegistryUnavailable("the registry cannot be written now", hint=error.message) from error

    def _logged_text(self, request_id: str | None) -> str:
        try:
            return find_text(self._decision_log or Path(), request_id or "", max_bytes=MAX_SEARCH_BYTES)
        except BadInput as error:
            raise NotFound("the decision log cannot be read", hint=error.message) from error


def parse_proposal(raw: bytes, principal: Principal = ANONYMOUS) -> Proposal:
    """Parse a body: `route`, either `text` or `request_id`, and optionally `user`. Raises `InvalidRequest`.

    Its source is the key of `principal`, before the `user`; only where the registry has no keys it is the `user` alone.
    """
    body = parse_object(raw)
    unknown = sorted(set(body) - _FIELDS)
    if unknown:
        raise InvalidRequest(f"{unknown[0]!r:.80} is not a field of feedback", param=f"{unknown[0]:.80}")
    text, request_id, user = (_optional(body, name) for name in ("text", "request_id", "user"))
    if (text is None) == (request_id is None):
        raise InvalidRequest("expected either 'text' or 'request_id'", param="text")
    if text is not None and (len(text) > MAX_TEXT_CHARACTERS or not text.strip() or "\0" in text):
        raise InvalidRequest(
            f"'text' must hold 1 to {MAX_TEXT_CHARACTERS} characters, none of them NUL, and not only blanks",
            param="text",
        )
    for name, value in (("request_id", request_id), ("user", user)):
        if value is not None and not REQUEST_ID.fullmatch(value):
            raise InvalidRequest(f"{name!r} must be 1 to 128 letters, digits, '.', '_' or '-'", param=name)
    return Proposal(_label(body, principal), text, request_id, _source(principal, user))


def _source(principal: Principal, user: str | None) -> str:
    if principal.key_id is None:
        return f"feedback:{user or 'client'}"
    return f"key:{principal.name}/{user}" if user else f"key:{principal.name}"


def _label(body: Mapping[str, object], principal: Principal) -> str:
    label = body.get("route")
    if label == BASE_LABEL:
        return BASE_LABEL
    if isinstance(label, str):
        with suppress(InvalidName):
            name = parse_route_name(label)
            if principal.may_use(name):
                return name
            raise Forbidden(f"this key may not use {name!r}", param="route", code="not_permitted")
    raise InvalidRequest("'route' must be a route's name or 'base'", param="route")


def _optional(body: Mapping[str, object], name: str) -> str | None:
    value = body.get(name)
    if value is not None and not isinstance(value, str):
        raise InvalidRequest(f"{name!r} must be a string", param=name)
    return value
