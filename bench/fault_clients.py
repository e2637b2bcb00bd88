"""Clients of the fault suite and of the soak: what each was answered, and which promise that breaks.

Promised for every answer: it is what was asked for, whole; or an OpenAI error with a request id; or a stream that had
begun and says with an error event, which carries the request id, that it was cut short.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

SECONDS = 60.0  # after which a client gives an answer up, which is a broken promise
CHAT = "/v1/chat/completions"
_JSON = {"content-type": "application/json"}
_ERROR_MEMBERS = {"message", "type", "param", "code"}


@dataclass(frozen=True, slots=True)
class Question:
    """A chat request: for which model, streamed or whole; `expect` are the statuses that keep the promise.

    `raw` is sent instead where it is given. `tokens`: of the answer, at most.
    """

    model: str
    text: str = "which city has the most people"
    stream: bool = False
    expect: frozenset[int] = frozenset({200})
    raw: bytes = b""
    tokens: int = 16

    @property
    def body(self) -> bytes:
        messages = [{"role": "user", "content": self.text}]
        asked = {"model": self.model, "messages": messages, "stream": self.stream, "max_tokens": self.tokens}
        return self.raw or json.dumps(asked).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What came; `failure` is set where the connection broke or nothing came. Times are monotonic seconds."""

    question: Question
    asked: float
    ended: float
    gateway: str
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    failure: str | None = None

    @property
    def stage(self) -> str:
        return self.headers.get("x-branchline-stage", "")

    @property
    def version(self) -> str:
        """Which version the gateway says has answered; empty for the base."""
        route, number = self.headers.get("x-branchline-route"), self.headers.get("x-branchline-version")
        return f"{route}@{number}" if route and number else ""

    @property
    def is_cut(self) -> bool:
        """Whether it is a stream that had begun and says that it was cut short."""
        return self.question.stream and self.status == 200 and b'data: {"error"' in self.body

    @property
    def broken(self) -> str | None:
        """The promise that it breaks, `None` where it breaks none."""
        if self.failure is not None:
            return f"no whole answer: {self.failure}"
        if self.status not in self.question.expect:
            return f"{self.status} {self.body[:200].decode(errors='replace')}"
        if self.status != 200:
            return self._broken_error(self.body)
        if not self.question.stream:
            return self._broken_whole()
        if self.is_cut:
            return self._broken_error(self.body.rpartition(b"data: ")[2])
        return None if self.body.rstrip().endswith(b"data: [DONE]") else "a stream without an end"

    def _broken_whole(self) -> str | None:
        document = _document(self.body)
        if not document.get("choices"):
            return "an answer without choices"
        model, version = str(document.get("model", "")), self.version
        return f"{version} was answered by {model}" if version and not model.startswith(f"{version}.") else None

    def _broken_error(self, raw: bytes) -> str | None:
        document = _document(raw)
        error = document.get("error")
        if not isinstance(error, dict) or not error.keys() >= _ERROR_MEMBERS:
            return f"no OpenAI error: {raw[:200].decode(errors='replace')}"
        request_id = self.headers.get("x-request-id", "")
        told = request_id and (self.status != 200 or document.get("request_id") == request_id)
        return None if told else "an error without the request id"


def _document(raw: bytes) -> dict[str, Any]:
    try:
        document = json.loads(raw)
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


async def ask(session: aiohttp.ClientSession, gateway: str, question: Question) -> Answer:
    """One request; never raises."""
    asked = time.monotonic()
    status, headers, body = 0, {}, b""
    try:
        async with (
            asyncio.timeout(SECONDS),
            session.post(gateway + CHAT, data=question.body, headers=_JSON) as response,
        ):
            status, headers = response.status, {name.lower(): value for name, value in response.headers.items()}
            body = await response.read()
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        failure = f"{type(error).__name__} {error}".strip()
        return Answer(question, asked, time.monotonic(), gateway, status, headers, body, failure)
    return Answer(question, asked, time.monotonic(), gateway, status, headers, body)


@dataclass(slots=True)
class Load:
    """What all clients were answered so far."""

    answers: list[Answer] = field(default_factory=list)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, answer: Answer) -> None:
        self.answers.append(answer)
        self._changed.set()

    async def more(self, count: int) -> list[Answer]:
        """`count` answers to what is asked from now on."""
        began = time.monotonic()
        async with asyncio.timeout(SECONDS):
            while len(found := [one for one in self.answers if one.asked >= began]) < count:
                self._changed.clear()
                await self._changed.wait()
        return found


@asynccontextmanager
async def load(urls: Sequence[str], questions: Sequence[Question], *, clients: int = 4) -> AsyncIterator[Load]:
    """`clients` for each gateway that ask one question after another, until the end of the block; all answers are in
    by then.
    """
    ran, stop = Load(), asyncio.Event()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def client(url: str, number: int) -> None:
            while not stop.is_set():
                ran.add(await ask(session, url, questions[number % len(questions)]))
                number += 1
                await asyncio.sleep(0.01)

        tasks = [asyncio.create_task(client(url, number)) for url in urls for number in range(clients)]
        try:
            yield ran
        finally:
            stop.set()
            await asyncio.gather(*tasks)
