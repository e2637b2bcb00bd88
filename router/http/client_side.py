"""The client's side of a request: its body, read once and within a limit, and whether it is still there."""

from __future__ import annotations

import asyncio
from types import TracebackType

from starlette.types import Receive, Scope

from ..errors import BodyTooLarge, InvalidRequest

CLIENT = "branchline.client"  # in the ASGI scope: the request's `WhileThere`


class ClientGone(InvalidRequest):
    """The client closed the connection before it was answered."""

    def __init__(self) -> None:
        super().__init__("the client closed the connection", code="client_closed_request")


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The body of a JSON request, at most `limit` bytes.

    Raises `InvalidRequest` for another content type, `BodyTooLarge`, and `ClientGone`.
    """
    declared = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    content_type = declared.partition(b";")[0].strip().lower()
    if content_type != b"application/json":
        raise InvalidRequest(f"content-type is {content_type.decode('latin-1')!r:.80}, expected application/json")
    pieces: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(piece)
        if size > limit:
            raise BodyTooLarge(f"the body is over {limit} bytes")
        pieces.append(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class WhileThere:
    """A block that is cancelled, and left with `ClientGone`, when the client goes away: that is what stops an engine.

    One for each request; whoever serves the connection calls `went`. Enter it after the body was read, in the task
    that serves the request, and leave it before the answer is complete.
    """

    def __init__(self) -> None:
        self._task: asyncio.Task[object] | None = None
        self._gone = False

    def went(self) -> None:
        """The client closed the connection."""
        self._gone = True
        if self._task is not None:
            self._task.cancel()

    def require(self) -> None:
        """Raise `ClientGone` where the client went, also where the cancellation was swallowed."""
        if self._gone:
            raise ClientGone

    def __enter__(self) -> WhileThere:
        self.require()
        self._task = asyncio.current_task()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        if self._gone and task is not None:
            cancelled_by_others = task.uncancel() > 0
            if isinstance(error, asyncio.CancelledError) and not cancelled_by_others:
                raise ClientGone from None


def client_of(scope: Scope) -> WhileThere:
    """Of a request; one that never goes, where the server does not tell."""
    client: WhileThere | None = scope.get(CLIENT)
    return client or WhileThere()
