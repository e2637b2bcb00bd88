"""An engine that says which engine name answered what: `[sql@1.0123456789abcdef] the last user text`.

Deterministic and instant: for tests, and for measuring the gateway itself. A token is a word with the space before it.
"""

from __future__ import annotations

import asyncio
import json
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.probes import NO_PROBES, Probes
from adapters.rows import last_user_text
from adapters.types import AdapterVersion

from ..errors import AdapterUnavailable, EngineFailed
from ..frames import Events, reply, token_reply
from ..sampling import Sampling
from ..types import Call, Chunk, EngineStatus, FinishReason, Reply, Usage
from .base import refuse_drain
from .prompt import TextOrIds, parse_messages, parse_prompts, parse_tokenize
from .stops import StopScanner

_WORD = re.compile(r"\s*\S+")


@dataclass(frozen=True, slots=True)
class _Answer:
    prompt_tokens: int
    words: tuple[str, ...]
    budget: int


class EchoBackend:
    """Keeps the contract of `Backend`. `token_delay` is in seconds, before each token; `context_length` in words."""

    def __init__(
        self,
        base_id: str,
        *,
        base_fingerprint: str | None = None,
        token_delay: float = 0.0,
        context_length: int = 4096,
    ) -> None:
        self._base_id = base_id
        self._base_fingerprint = base_fingerprint
        self._token_delay = token_delay
        self._context_length = context_length
        self._resident: set[str] = set()
        self._up = False
        self._running = 0

    @property
    def base_id(self) -> str:
        return self._base_id

    @property
    def base_fingerprint(self) -> str | None:
        return self._base_fingerprint

    @property
    def capacity(self) -> int | None:
        return None

    @property
    def engines(self) -> list[EngineStatus]:
        return [
            EngineStatus(
                "echo",
                "up" if self._up else "down",
                outstanding=self._running,
                resident=len(self._resident),
                base_fingerprint=self._base_fingerprint,
            )
        ]

    @property
    def running(self) -> int:
        """How many calls are being worked on."""
        return self._running

    async def start(self) -> None:
        self._up = True

    async def stop(self) -> None:
        self._up = False
        self._resident.clear()

    async def ready(self) -> bool:
        return self._up

    async def load(self, version: AdapterVersion, folder: Path, probes: Probes = NO_PROBES) -> None:
        if version.engine_name not in self._resident:
            await asyncio.to_thread(_check_folder, folder, version.engine_name)
            self._resident.add(version.engine_name)

    async def unload(self, engine_name: str) -> None:
        self._resident.discard(engine_name)

    def is_resident(self, engine_name: str) -> bool:
        return engine_name in self._resident

    async def open(self, call: Call) -> Reply:
        if not self._up:
            raise EngineFailed("the engine is not running")
        if call.engine_name != self._base_id and call.engine_name not in self._resident:
            raise AdapterUnavailable(f"{call.engine_name} is not resident")
        if call.endpoint == "tokenize":
            return self._tokenize(call)
        sampling = Sampling.parse(call.body, call.endpoint)
        answers = [self._answer(call.engine_name, prompt, sampling) for prompt in _prompts(call)]
        self._running += 1
        return reply(
            call,
            self._events(answers, sampling),
            choices=len(answers),
            include_usage=sampling.include_usage,
            release=self._release,
        )

    async def drain(self, name: str) -> None:
        refuse_drain("echo", name)

    async def resume(self, name: str) -> None:
        refuse_drain("echo", name)

    def _tokenize(self, call: Call) -> Reply:
        """A token is a word; its id is the word's checksum."""
        prompt = parse_tokenize(call.body)
        text = prompt if isinstance(prompt, str) else " ".join(message.content for message in prompt)
        return token_reply([zlib.crc32(word.encode()) for word in text.split()], self._context_length)

    def _answer(self, engine_name: str, prompt: tuple[str, int], sampling: Sampling) -> _Answer:
        text, prompt_tokens = prompt
        budget = sampling.budget(prompt_tokens, self._context_length)
        return _Answer(prompt_tokens, tuple(_WORD.findall(f"[{engine_name}] {text}")), budget)

    async def _events(self, answers: Sequence[_Answer], sampling: Sampling) -> Events:
        for index, answer in enumerate(answers):
            scanner = StopScanner(sampling.stop)
            spoken = 0
            for word in answer.words[: answer.budget]:
                await asyncio.sleep(self._token_delay)
                if not self._up:
                    raise EngineFailed("the engine was stopped")
                spoken += 1
                text = scanner.push(word)
                if scanner.found:
                    yield index, Chunk(text)
                    break
                if text:
                    yield index, Chunk(text)
            complete = scanner.found or spoken == len(answer.words)
            finish: FinishReason = "stop" if complete else "length"
            yield index, Chunk(scanner.flush(), finish, Usage(answer.prompt_tokens, spoken))

    def _release(self) -> None:
        self._running -= 1


def _prompts(call: Call) -> list[tuple[str, int]]:
    """Per choice, the text to answer with and the number of words in its prompt."""
    if call.endpoint == "chat/completions":
        messages = parse_messages(call.body)
        return [(last_user_text(messages), sum(len(message.content.split()) for message in messages))]
    texts = [_as_text(prompt) for prompt in parse_prompts(call.body)]
    return [(text, len(text.split())) for text in texts]


def _as_text(prompt: TextOrIds) -> str:
    return prompt if isinstance(prompt, str) else " ".join(str(token) for token in prompt)


def _check_folder(folder: Path, engine_name: str) -> None:
    """An adapter this engine would apply, if it applied any: a config and a readable safetensors file."""
    from safetensors import SafetensorError, safe_open

    try:
        config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        with safe_open(folder / "adapter_model.safetensors", framework="numpy") as weights:
            usable = isinstance(config, dict) and bool(list(weights.keys()))
    except (OSError, ValueError, SafetensorError) as error:
        raise AdapterUnavailable(f"{engine_name} cannot be loaded: {type(error).__name__}") from error
    if not usable:
        raise AdapterUnavailable(f"{engine_name} cannot be loaded: no config or no weights")
