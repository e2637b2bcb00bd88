"""How much a key may do on this gateway: requests and tokens per minute, and requests at a time.

The limits per minute are leaky buckets used as meters (the generic cell rate algorithm, ITU-T I.371): each use fills
the meter, which drains evenly, a whole limit in a minute. That is what `x-ratelimit-reset-*` tells: when it is empty.
Tokens are known when an answer ends and counted then, so a key can overdraw by what it has in flight; it waits until
that has drained.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from adapters.keys import KeyLimits

from ..errors import RateLimited
from .principal import Principal

BYTES_PER_TOKEN = 4  # of a request's body, where the engine does not say how many tokens its prompt had
Limited = Literal["requests", "tokens", "concurrency"]
_MINUTE = 60.0
_ROUNDING = 1e-6  # of a unit: what floating point may lose on the way


@dataclass(slots=True)
class Meter:
    """What is used of `limit` per minute. In any t seconds it has room for at most `limit * (1 + t / 60)`.

    A clock that goes back stands still instead: nothing drains until it moves on from there.
    """

    limit: int
    level: float = 0.0
    at: float = -math.inf

    def drain(self, now: float) -> None:
        """Bring the level to the time `now`, in seconds."""
        passed = now - self.at
        if passed > 0:
            self.level = max(0.0, self.level - passed * self.limit / _MINUTE)
        self.at = now

    @property
    def has_room(self) -> bool:
        """Whether one more fits."""
        return self.level + 1 <= self.limit + _ROUNDING

    @property
    def remaining(self) -> int:
        return max(0, math.floor(self.limit - self.level + _ROUNDING))

    @property
    def reset_seconds(self) -> float:
        """Until all of the limit is there again."""
        return self.level * _MINUTE / self.limit

    @property
    def wait_seconds(self) -> float:
        """Until one more fits."""
        return max(0.0, (self.level + 1 - self.limit) * _MINUTE / self.limit)


@dataclass(slots=True)
class Use:
    """What one key has done on this gateway since it started, and what of its limits is used now."""

    name: str
    limits: KeyLimits = field(default_factory=KeyLimits)
    requests: Meter | None = None
    tokens: Meter | None = None
    running: int = 0
    admitted: int = 0
    tokens_counted: int = 0
    refused: dict[Limited, int] = field(default_factory=lambda: {"requests": 0, "tokens": 0, "concurrency": 0})

    def follow(self, limits: KeyLimits) -> None:
        """Go by other limits from here on; what was used stays used."""
        self.limits = limits
        self.requests = _meter(limits.requests_per_minute, self.requests)
        self.tokens = _meter(limits.tokens_per_minute, self.tokens)

    @property
    def at_once(self) -> int:
        """How many of its requests this gateway is answering, in whatever process."""
        return self.running

    def meters(self, now: float) -> Iterator[tuple[str, Meter]]:
        for name, meter in (("requests", self.requests), ("tokens", self.tokens)):
            if meter is not None:
                meter.drain(now)
                yield name, meter

    def headers(self, now: float) -> dict[str, str]:
        """OpenAI's headers: of each limit its size, what remains, and in how long all of it is there again."""
        said = {}
        for name, meter in self.meters(now):
            said[f"x-ratelimit-limit-{name}"] = str(meter.limit)
            said[f"x-ratelimit-remaining-{name}"] = str(meter.remaining)
            said[f"x-ratelimit-reset-{name}"] = duration(meter.reset_seconds)
        return said


class Admission:
    """One request that was let in. `ended` or `answered` must be called whatever ends it; forgetting it does, too.

    `prompt_estimate` is how many tokens its prompt counts where the answer does not tell.
    """

    __slots__ = ("_clock", "_running", "_use", "prompt_estimate")

    def __init__(self, use: Use, clock: Callable[[], float]) -> None:
        self._use = use
        self._clock = clock
        self._running = True
        self.prompt_estimate = 0

    def headers(self) -> dict[str, str]:
        """The `x-ratelimit-*` headers as they stand now, of those limits that the key has."""
        return self._use.headers(self._clock())

    def answered(self, prompt_tokens: int | None, completion_tokens: int) -> None:
        """As `ended`, with the tokens as the answer told them."""
        self.ended((self.prompt_estimate if prompt_tokens is None else prompt_tokens) + completion_tokens)

    def ended(self, tokens: int = 0) -> None:
        """Free the request's place and count its tokens, prompt and answer. Only the first call does anything."""
        if not self._running:
            return
        self._running = False
        use = self._use
        use.running -= 1
        use.tokens_counted += tokens
        if use.tokens is not None:
            use.tokens.drain(self._clock())
            use.tokens.level += tokens

    def __del__(self) -> None:
        self.ended()


class Limits:
    """The limits of all keys, in this gateway process alone. Lives on its event loop. `clock` tells seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, Use] = {}

    @property
    def uses(self) -> list[Use]:
        """Of every key that has asked so far."""
        return list(self._uses.values())

    def admit(self, principal: Principal) -> Admission:
        """Let one request in, or raise `RateLimited`, which then costs nothing of the limits."""
        use = self._uses.get(principal.key_id or principal.name)
        if use is None:
            use = self._uses[principal.key_id or principal.name] = Use(principal.name)
        if use.limits is not principal.limits:
            use.follow(principal.limits)
        most = use.limits.max_concurrent
        if most is not None and use.at_once >= most:
            raise self._refusal(use, "concurrency", f"{most} requests at a time", 1.0)
        for name, meter in use.meters(self._clock()):
            if not meter.has_room:
                what: Limited = "requests" if name == "requests" else "tokens"
                raise self._refusal(use, what, f"{meter.limit} {name} per minute", meter.wait_seconds)
        if use.requests is not None:
            use.requests.level += 1
        use.running += 1
        use.admitted += 1
        return self._admission(use)

    def _admission(self, use: Use) -> Admission:
        return Admission(use, self._clock)

    def _refusal(self, use: Use, what: Limited, limit: str, wait_seconds: float) -> RateLimited:
        use.refused[what] += 1
        wait_ms = math.ceil(wait_seconds * 1000)
        headers = {
            **use.headers(self._clock()),
            "retry-after": str(max(1, math.ceil(wait_ms / 1000))),
            "retry-after-ms": str(max(1, wait_ms)),
        }
        message = f"this key may do {limit} on this gateway; try again in {duration(wait_seconds)}"
        return RateLimited(message, headers=headers)


def duration(seconds: float) -> str:
    """As OpenAI's headers tell a time: `12ms`, `1.5s`, `6m0s`, `1h0m0s`; rounded up to a millisecond."""
    ms = math.ceil(seconds * 1000 - _ROUNDING)
    if 0 < ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:g}s"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m{ms / 1000:g}s" if hours else f"{minutes}m{ms / 1000:g}s"


def _meter(limit: int | None, before: Meter | None) -> Meter | None:
    if limit is None:
        return None
    return Meter(limit, before.level, before.at) if before is not None else Meter(limit)
