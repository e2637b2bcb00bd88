"""Proof that a vLLM engine applies a version, made beside the traffic from the outside: with plain requests.

Only log-probabilities of generated tokens are used. `prompt_logprobs` and `echo` can kill the engine, and
`logprob_token_ids` spoils the answers of other requests in the batch.

1. **It loads.** The first request under the engine name makes vLLM load the version.
2. **It changes something.** Base and version answer the same texts greedily, each twice, in other company and past
   the prefix cache. With d the distance of two answers (`traces.distance`):

       noise  = max over texts of d(base, base again) and d(version, version again)
       effect = max over texts of the least d(version, base) of the four pairs
       effect > FLOOR + 2 · noise

   A version that adds exactly zero is one more repeat of the base: its least distance cannot be over twice the largest.
3. **It is this version.** Where the trainer recorded answers, the version continues the same prompt tokens. With m the
   mean mismatch (`traces.mismatch`) over the recorded prompts, and b that of the base with what the trainer saw of
   the base, at the steps where the base was in doubt but had the recorded token surely among its first five:

       m ≤ min(TOLERANCE + 3 · b, MOST)        b = UNKNOWN where there is no such step
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adapters.probes import PROMPTS, Probes, RecordedPrompt

from ...errors import AdapterUnavailable, EngineFailed, InvalidRequest, ModelNotFound, NotApplied
from .traces import TOP, Trace, chat_trace, completion_trace, distance, gap, mismatch

Ask = Callable[[str, Mapping[str, object]], Awaitable[Mapping[str, Any]]]

FIXED = ("Hello, who are you?", "List three facts about 7 apples and one table named orders.")
TOKENS = 8
AT_ONCE = 8  # requests in flight, so that a proof takes a bounded share of the engine
FLOOR = 1e-4  # nats; all that lies under this is rounding of float32
TOLERANCE = 0.05  # nats of log-odds, all from here on
UNKNOWN = 0.1  # the base's mismatch where nothing can be compared: about what bfloat16 makes of float32
MOST = 0.5
SURE = -1.7  # a token of probability over 1/6 is among the first five


@dataclass(frozen=True, slots=True)
class Proof:
    """What was measured, in nats. `mismatch` and `tolerance` are `None` where the trainer recorded nothing usable;
    `compared` counts recorded prompts.
    """

    effect: float
    noise: float
    mismatch: float | None = None
    tolerance: float | None = None
    compared: int = 0


async def prove(ask: Ask, *, base_id: str, engine_name: str, probes: Probes) -> Proof:
    """Make the engine load `engine_name`, and prove that it applies it.

    `ask(path, body)` sends one request and returns the parsed answer; it raises from `router.errors`. Raises
    `AdapterUnavailable` where the version cannot be loaded, `NotApplied` where it changes nothing or answers like
    something else, `EngineFailed` where the engine answers nothing usable; the rest as `ask` does.
    """
    asker = _Asker(ask, base_id, engine_name)
    await asker.load()
    effect, noise = await _effect(asker, probes.texts[:PROMPTS])
    if effect <= FLOOR + 2 * noise:
        raise NotApplied(
            f"{engine_name} changes nothing: its answers are {effect:.2g} nats from the base's, "
            f"the base's {noise:.2g} from their own repeat"
        )
    found, base_found = await _mismatches(asker, probes.recorded[:PROMPTS])
    if not found:
        return Proof(effect, noise)
    mean, base_mean = _mean(found), _mean(base_found) if base_found else UNKNOWN
    tolerance = min(TOLERANCE + 3 * base_mean, MOST)
    if mean > tolerance:
        raise NotApplied(_why(engine_name, mean, tolerance, base_mean))
    return Proof(effect, noise, mean, tolerance, len(found))


def _why(engine_name: str, mean: float, tolerance: float, base_mean: float) -> str:
    if base_mean > MOST:
        return (
            f"{engine_name} cannot be recognised: the engine's base answers differently than the base the version was "
            f"trained on ({base_mean:.2g} nats apart, at most {MOST} expected)"
        )
    return (
        f"{engine_name} does not answer as the version that was trained: {mean:.2g} nats from what its trainer "
        f"recorded, at most {tolerance:.2g} expected"
    )


@dataclass(frozen=True, slots=True)
class _Asker:
    """The requests of one proof. Each has a cache salt of its own, so that none is answered from another's cache."""

    send: Ask
    base_id: str
    engine_name: str
    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(AT_ONCE))

    async def load(self) -> None:
        try:
            await self.send("/v1/completions", {**_greedy(self.engine_name, 1), "prompt": "Hello"})
        except (InvalidRequest, ModelNotFound, AdapterUnavailable) as error:
            raise AdapterUnavailable(f"{self.engine_name} cannot be loaded by the engine: {error.message}") from error

    async def chat(self, model: str, text: str) -> Trace | None:
        """A greedy answer; `None` where the engine refuses the request, as it does a text over its context."""
        messages = [{"role": "user", "content": text}]
        body = {**_greedy(model, TOKENS), "messages": messages, "logprobs": True, "top_logprobs": TOP}
        answer = await self._ask("/v1/chat/completions", body)
        return None if answer is None else chat_trace(answer)

    async def proceed(self, model: str, prompt: Sequence[int], tokens: int) -> Trace | None:
        """The greedy continuation of token ids; `None` as in `chat`."""
        body = {**_greedy(model, tokens), "prompt": list(prompt), "logprobs": TOP}
        answer = await self._ask("/v1/completions", body)
        return None if answer is None else completion_trace(answer)

    async def _ask(self, path: str, body: Mapping[str, object]) -> Mapping[str, Any] | None:
        async with self.room:
            try:
                return await self.send(path, body)
            except InvalidRequest:
                return None


def _greedy(model: str, tokens: int) -> dict[str, object]:
    return {
        "model": model,
        "max_tokens": tokens,
        "temperature": 0,
        "repetition_penalty": 1.0,  # a base's generation config may set these three
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "return_tokens_as_token_ids": True,
        "cache_salt": secrets.token_hex(8),
    }


async def _effect(asker: _Asker, texts: Sequence[str]) -> tuple[float, float]:
    """Effect and noise over `texts`, or over `FIXED` where the engine can answer none of them."""
    answers = await _ask_twice(asker, texts) or await _ask_twice(asker, FIXED)
    if not answers:
        raise EngineFailed("the engine refuses every request of the proof: has its base a chat template?")
    effects, noises = [], []
    for base, version, version_again, base_again in answers:
        pairs = [(one, other) for one in (version, version_again) for other in (base, base_again)]
        effects.append(min(distance(*pair) for pair in pairs))
        noises.append(max(distance(base, base_again), distance(version, version_again)))
    return max(effects), max(noises)


async def _ask_twice(asker: _Asker, texts: Sequence[str]) -> list[list[Trace]]:
    """Per text the answers of base, version, version and base; the repeats in reverse, beside other requests."""
    asked = [(model, text) for text in texts for model in (asker.base_id, asker.engine_name)]
    found = await _together([asker.chat(model, text) for model, text in [*asked, *reversed(asked)]])
    answers = [[found[place] for place in (i, i + 1, -i - 2, -i - 1)] for i in range(0, len(asked), 2)]
    return [complete for row in answers if len(complete := [trace for trace in row if trace]) == len(row)]


async def _mismatches(asker: _Asker, recorded: Sequence[RecordedPrompt]) -> tuple[list[float], list[float]]:
    """Per recorded prompt the version's mismatch, and the base's where there is a step to compare it at."""
    doubts = [(one, step) for one in recorded if (step := _doubtful_step(one)) is not None]
    traces = await _together(
        [asker.proceed(asker.engine_name, one.prompt_tokens, len(one.tokens)) for one in recorded]
        + [asker.proceed(asker.base_id, one.prompt_tokens + one.tokens[:step], 1) for one, step in doubts]
    )
    versions, bases = traces[: len(recorded)], traces[len(recorded) :]
    found = [mismatch(trace, one) for trace, one in zip(versions, recorded, strict=True) if trace]
    base_found = [
        gap(trace[0], one.tokens[step], one.base_logprobs[step])
        for trace, (one, step) in zip(bases, doubts, strict=True)
        if trace
    ]
    return found, base_found


def _doubtful_step(recorded: RecordedPrompt) -> int | None:
    """Where the base was least sure of the recorded token among the steps at which the engine surely lists it."""
    listed = [step for step, logprob in enumerate(recorded.base_logprobs) if logprob > SURE]
    return min(listed, key=recorded.base_logprobs.__getitem__, default=None)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


async def _together(asking: Sequence[Coroutine[Any, Any, Trace | None]]) -> list[Trace | None]:
    """All of them at once, in order; where one fails the others are stopped and its error is raised."""
    tasks = [asyncio.ensure_future(one) for one in asking]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
