"""Chunks to OpenAI's wire: server-sent events where the call streams, one JSON document where not.

For engines that produce `Chunk`s; an engine that speaks OpenAI's wire itself has no use for this.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from .types import Call, Chunk, Endpoint, FinishReason, Reply, Usage

DONE = b"data: [DONE]\n\n"
Events = AsyncGenerator[tuple[int, Chunk], None]  # (index of the choice, its next piece)
_PREFIX: dict[Endpoint, str] = {"chat/completions": "chatcmpl", "completions": "cmpl"}


@dataclass(frozen=True, slots=True)
class Frames:
    """The frames of one answer. `created` is in seconds since the epoch."""

    endpoint: Endpoint
    model: str
    request_id: str
    created: int
    include_usage: bool = False

    @classmethod
    def of(cls, call: Call, *, include_usage: bool) -> Frames:
        return cls(call.endpoint, call.engine_name, call.request_id, int(time.time()), include_usage)

    def role(self, index: int) -> bytes:
        """The first frame of a chat choice."""
        return self._event([self._choice(index, {"role": "assistant", "content": ""}, None)])

    def piece(self, index: int, chunk: Chunk) -> bytes:
        """One frame for one chunk; the last of a choice carries the finish reason."""
        delta = {"content": chunk.text} if chunk.text else {}
        return self._event([self._choice(index, delta if self._chat else chunk.text, chunk.finish_reason)])

    def usage(self, usage: Usage) -> bytes:
        """The frame after the last choice, where the client asked for it: no choices, the total."""
        return _sse({**self._head("chunk"), "choices": [], "usage": _usage(usage)})

    def document(self, answers: list[Answer]) -> bytes:
        """The whole answer as one JSON document."""
        choices = [self._whole(index, answer) for index, answer in enumerate(answers)]
        total = total_usage([answer.usage for answer in answers])
        return _json({**self._head("document"), "choices": choices, "usage": _usage(total)})

    @property
    def _chat(self) -> bool:
        return self.endpoint == "chat/completions"

    def _event(self, choices: list[dict[str, object]]) -> bytes:
        nothing_yet = {"usage": None} if self.include_usage else {}
        return _sse({**self._head("chunk"), "choices": choices, **nothing_yet})

    def _head(self, form: str) -> dict[str, object]:
        kind = f"chat.completion{'.chunk' if form == 'chunk' else ''}" if self._chat else "text_completion"
        return {
            "id": f"{_PREFIX[self.endpoint]}-{self.request_id}",
            "object": kind,
            "created": self.created,
            "model": self.model,
        }

    def _choice(self, index: int, delta: object, finish: FinishReason | None) -> dict[str, object]:
        key = "delta" if self._chat else "text"
        return {"index": index, key: delta, "logprobs": None, "finish_reason": finish}

    def _whole(self, index: int, answer: Answer) -> dict[str, object]:
        content = {"role": "assistant", "content": answer.text, "refusal": None}
        key, value = ("message", content) if self._chat else ("text", answer.text)
        return {"index": index, key: value, "logprobs": None, "finish_reason": answer.finish_reason}


@dataclass(slots=True)
class Answer:
    """The chunks of one choice, put together."""

    parts: list[str] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    usage: Usage = field(default_factory=lambda: Usage(0, 0))

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def add(self, chunk: Chunk) -> None:
        self.parts.append(chunk.text)
        self.finish_reason = chunk.finish_reason
        self.usage = chunk.usage or self.usage


def total_usage(usages: list[Usage]) -> Usage:
    """The sum over the choices."""
    return Usage(sum(one.prompt_tokens for one in usages), sum(one.completion_tokens for one in usages))


async def stream(frames: Frames, events: Events) -> AsyncGenerator[bytes, None]:
    """Server-sent events, ending with `data: [DONE]`."""
    opened: set[int] = set()
    usages: list[Usage] = []
    async for index, chunk in events:
        if frames.endpoint == "chat/completions" and index not in opened:
            opened.add(index)
            yield frames.role(index)
        yield frames.piece(index, chunk)
        if chunk.usage is not None:
            usages.append(chunk.usage)
    if frames.include_usage:
        yield frames.usage(total_usage(usages))
    yield DONE


async def collect(frames: Frames, events: Events, choices: int) -> AsyncGenerator[bytes, None]:
    """One JSON document, when all `choices` are complete."""
    answers = [Answer() for _ in range(choices)]
    async for index, chunk in events:
        answers[index].add(chunk)
    yield frames.document(answers)


class Body(AsyncIterator[bytes]):
    """The body of a reply whose work began in `Backend.open`, before anybody iterates.

    `release` stops that work; it is called once, on the end, on an error, on a cancelled wait, on `aclose` and when
    the body is dropped (a plain async generator that was never iterated would run no `finally`).
    """

    def __init__(self, frames: AsyncGenerator[bytes, None], release: Callable[[], None]) -> None:
        self._frames = frames
        self._release: Callable[[], None] | None = release

    async def __anext__(self) -> bytes:
        try:
            return await anext(self._frames)
        except BaseException:
            self._end()
            raise

    async def aclose(self) -> None:
        self._end()
        await self._frames.aclose()

    def __del__(self) -> None:
        self._end()

    def _end(self) -> None:
        release, self._release = self._release, None
        if release is not None:
            release()


def reply(call: Call, events: Events, *, choices: int, include_usage: bool, release: Callable[[], None]) -> Reply:
    """The answer to `call` made of `events`, which may raise `EngineFailed`."""
    frames = Frames.of(call, include_usage=include_usage)
    if call.stream:
        return Reply(Body(stream(frames, events), release), "text/event-stream; charset=utf-8")
    return Reply(Body(collect(frames, events, choices), release), "application/json")


def token_reply(tokens: Sequence[int], context_length: int) -> Reply:
    """The answer to a /tokenize call, in vLLM's shape."""

    async def body() -> AsyncGenerator[bytes, None]:
        yield _json({"count": len(tokens), "max_model_len": context_length, "tokens": tokens, "token_strs": None})

    return Reply(body(), "application/json")


def _usage(usage: Usage) -> dict[str, int]:
    total = usage.prompt_tokens + usage.completion_tokens
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": total,
    }


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _sse(value: object) -> bytes:
    return b"data: " + _json(value) + b"\n\n"
