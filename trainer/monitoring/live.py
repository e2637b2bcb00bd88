"""Ask a live gateway over HTTP, as any OpenAI client would, with deterministic decoding."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import httpx

from adapters.rows import Example

ERRORS_IN_A_ROW = 20  # then the rest is not asked: a gateway that is gone must not cost a time-out per item
MAX_ANSWER_BYTES = 16 * 1024 * 1024
NOT_ASKED = f"not asked after {ERRORS_IN_A_ROW} errors in a row"


@dataclass(frozen=True, slots=True)
class Answer:
    """What the gateway said: `text` by `model` (the engine name that really answered), or why there is no answer."""

    text: str = ""
    model: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway's address (with or without `/v1`), the key it wants, seconds per request, and requests at a time."""

    url: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    concurrency: int = 4

    @property
    def completions(self) -> str:
        """Where chat completions are asked for."""
        return f"{self.url.rstrip('/').removesuffix('/v1')}/v1/chat/completions"

    async def ask(
        self, model: str, questions: Sequence[Example], max_tokens: int, on_answer: Callable[[int], None]
    ) -> list[Answer]:
        """One answer per question, in their order; temperature 0. Errors are answers, nothing is asked twice.

        `on_answer` hears how many are done. Cancelling it ends the requests under way.
        """
        headers = {"accept-encoding": "identity"}  # what is packed could be anything once unpacked
        headers |= {"authorization": f"Bearer {self.key}"} if self.key else {}
        turns = asyncio.Semaphore(self.concurrency)
        in_a_row = done = 0

        async with httpx.AsyncClient(headers=headers, timeout=self.timeout, trust_env=False) as client:

            async def one(question: Example) -> Answer:
                nonlocal in_a_row, done
                async with turns:
                    if in_a_row >= ERRORS_IN_A_ROW:
                        return Answer(error=NOT_ASKED)
                    answer = await _ask_once(client, self.completions, _body(model, question, max_tokens))
                    in_a_row = in_a_row + 1 if answer.error else 0
                    done += 1
                    on_answer(done)
                    return answer

            return list(await asyncio.gather(*(one(question) for question in questions)))


def _body(model: str, question: Example, max_tokens: int) -> dict[str, object]:
    messages = [{"role": turn.role, "content": turn.content} for turn in question.prompt]
    return {"model": model, "messages": messages, "temperature": 0, "seed": 0, "max_tokens": max_tokens}


async def _ask_once(client: httpx.AsyncClient, url: str, body: Mapping[str, object]) -> Answer:
    try:
        # httpx counts from piece to piece; a body that drips would never end
        async with asyncio.timeout(client.timeout.read), client.stream("POST", url, json=body) as response:
            if response.status_code != httpx.codes.OK:
                return Answer(error=f"HTTP {response.status_code}")
            said = json.loads(await _read(response))
        text = said["choices"][0]["message"]["content"]
        return Answer(text=str(text or ""), model=str(said["model"]))
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
        return Answer(error=type(error).__name__)
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return Answer(error="no chat completion")


async def _read(response: httpx.Response) -> bytes:
    """The body as it was sent; raises `ValueError` over `MAX_ANSWER_BYTES`."""
    body = b""
    async for piece in response.aiter_raw():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise ValueError(f"over {MAX_ANSWER_BYTES} bytes")
    return body
