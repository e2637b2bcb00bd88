"""The control channel: JSON messages both ways between parent and one worker, over a pair of sockets nobody else has.

Notices arrive in the order they were sent, and before the answer to whatever is asked after them.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from ..background import Background
from ..errors import EngineUnavailable
from .framing import json_frame, read_json
from .trip import error_document, error_from

Document = dict[str, Any]
Hear = Callable[[str, Document], None]
Answer = Callable[[str, Document], Awaitable[Document]]
ANSWER_SECONDS = 5.0  # in which the other side answers a question that it need not wait for anything to answer
log = logging.getLogger("branchline.workers")


class Channel:
    """Lives on one event loop. `hear` gets the other side's notices, one after another; `answer` its questions, each
    in a task of its own. Errors that `answer` raises are raised where it was asked.
    """

    def __init__(self, end: socket.socket, hear: Hear, answer: Answer) -> None:
        self._end = end
        self._hear = hear
        self._answer = answer
        self._writer: asyncio.StreamWriter | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Document]] = {}
        self._answering = Background()

    async def run(self, begun: Callable[[], None] = lambda: None) -> None:
        """Until the other side ends, or `close`. What is told before it calls `begun` is lost."""
        reader, self._writer = await asyncio.open_unix_connection(sock=self._end)
        begun()
        try:
            while (message := await read_json(reader)) is not None:
                self._take(message)
        finally:
            await self._ended()

    @property
    def is_open(self) -> bool:
        return self._writer is not None and not self._writer.is_closing()

    def tell(self, what: str, body: Document) -> None:
        """Send a notice. One to a side that has ended is lost."""
        self._send({"what": what, "body": body})

    async def ask(self, what: str, body: Document, *, seconds: float | None = ANSWER_SECONDS) -> Document:
        """What the other side answers. Raises what it raised, and `EngineUnavailable` where it ends before that, or
        does not answer within `seconds`; `None` waits as long as it lives.
        """
        if not self.is_open:
            raise _gone()
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send({"what": what, "body": body, "ask": number})
        try:
            async with asyncio.timeout(seconds):
                told: Document = await answer
            return told
        except TimeoutError:
            raise EngineUnavailable("the gateway's parent process does not answer") from None
        finally:
            del self._asked[number]

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()

    def _send(self, message: Document) -> None:
        if self.is_open and self._writer is not None:
            self._writer.write(json_frame(message))

    def _take(self, message: Document) -> None:
        if "what" not in message:
            answer = self._asked.get(message["to"])
            if answer is not None and not answer.done():
                if "error" in message:
                    answer.set_exception(error_from(message["error"]))
                else:
                    answer.set_result(message["body"])
        elif "ask" in message:
            self._answering.spawn(self._reply(message["what"], message["body"], message["ask"]))
        else:
            self._hear(message["what"], message["body"])

    async def _reply(self, what: str, body: Document, number: int) -> None:
        try:
            self._send({"to": number, "body": await self._answer(what, body)})
        except Exception as error:  # noqa: BLE001 - it is raised where it was asked
            self._send({"to": number, "error": error_document(error)})

    async def _ended(self) -> None:
        self.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(_gone())
        await self._answering.stop()


def _gone() -> EngineUnavailable:
    return EngineUnavailable("the gateway is stopping")
