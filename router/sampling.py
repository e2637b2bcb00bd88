"""Sampling parameters of a request, for engines that decode in this process.

Nothing is ignored in silence: a parameter is honoured, known to change nothing at the value given, or refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import InvalidRequest
from .types import Endpoint

MAX_STOPS = 4
COMPLETIONS_MAX_TOKENS = 16  # OpenAI's default for /v1/completions
_INT64 = 2**63

_HONOURED = frozenset({"model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop"})
_HONOURED_BY: dict[Endpoint, frozenset[str]] = {
    "chat/completions": _HONOURED | {"messages", "max_completion_tokens"},
    "completions": _HONOURED | {"prompt"},
}
_CHANGES_NOTHING = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "parallel_tool_calls"})
_NEUTRAL: dict[str, tuple[object, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "echo": (False,),
    "suffix": ("",),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "service_tier": ("auto", "default"),
    "store": (False,),
}


@dataclass(frozen=True, slots=True)
class Defaults:
    """What holds where a request says nothing; a base's generation config may set it."""

    temperature: float = 1.0
    top_p: float = 1.0


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose tokens and when to stop.

    `temperature` 0 is greedy; `max_tokens` `None` means as far as the context goes.
    """

    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stop: tuple[str, ...]
    include_usage: bool

    @classmethod
    def parse(cls, body: Mapping[str, object], endpoint: Endpoint, defaults: Defaults | None = None) -> Sampling:
        """Read `body`; raises `InvalidRequest` naming the first parameter that is unsupported or out of range."""
        if endpoint not in _HONOURED_BY:
            raise InvalidRequest(f"/{endpoint} is not served by this engine", code="unsupported_endpoint")
        defaults = defaults or Defaults()
        given = {name: value for name, value in body.items() if value is not None}
        _refuse_unsupported(given, endpoint)
        return cls(
            max_tokens=_max_tokens(given, endpoint),
            temperature=_number(given, "temperature", defaults.temperature, low=0.0, high=2.0),
            top_p=_top_p(given, defaults.top_p),
            seed=_integer(given, "seed", low=-_INT64, high=_INT64 - 1),
            stop=_stop(given.get("stop", [])),
            include_usage=_include_usage(given),
        )

    def budget(self, prompt_tokens: int, context_length: int) -> int:
        """How many tokens may be generated after `prompt_tokens`; raises `InvalidRequest` where they do not fit."""
        wanted = 1 if self.max_tokens is None else self.max_tokens
        if prompt_tokens + wanted > context_length:
            raise InvalidRequest(
                f"this model's context is {context_length} tokens, but {prompt_tokens + wanted} were requested "
                f"({prompt_tokens} in the prompt, {wanted} for the answer); shorten the prompt or lower max_tokens",
                code="context_length_exceeded",
            )
        return context_length - prompt_tokens if self.max_tokens is None else self.max_tokens


def _refuse_unsupported(given: Mapping[str, object], endpoint: Endpoint) -> None:
    for name, value in given.items():
        if name in _HONOURED_BY[endpoint] or name in _CHANGES_NOTHING:
            continue
        if name not in _NEUTRAL:
            raise InvalidRequest(f"{name} is not supported by this engine", param=name, code="unsupported_parameter")
        if not any(_same(value, neutral) for neutral in _NEUTRAL[name]):
            neutral = " or ".join(repr(neutral) for neutral in _NEUTRAL[name])
            raise InvalidRequest(
                f"{name} is supported by this engine only as {neutral}", param=name, code="unsupported_parameter"
            )


def _same(value: object, neutral: object) -> bool:
    """Equality in JSON's sense, where `0` is not `false`."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def _integer(given: Mapping[str, object], name: str, *, low: int, high: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a whole number from {low} to {high}, found {value!r:.40}", param=name)
    return value


def _number(given: Mapping[str, object], name: str, default: float, *, low: float, high: float) -> float:
    value = given.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidRequest(f"{name} must be a number from {low:g} to {high:g}, found {value!r:.40}", param=name)
    return float(value)


def _top_p(given: Mapping[str, object], default: float) -> float:
    value = _number(given, "top_p", default, low=0.0, high=1.0)
    if value == 0.0:
        raise InvalidRequest("top_p must be over 0; for greedy decoding set temperature to 0", param="top_p")
    return value


def _max_tokens(given: Mapping[str, object], endpoint: Endpoint) -> int | None:
    if endpoint == "completions":
        return _integer(given, "max_tokens", low=1, high=_INT64 - 1) or COMPLETIONS_MAX_TOKENS
    older = _integer(given, "max_tokens", low=1, high=_INT64 - 1)
    return _integer(given, "max_completion_tokens", low=1, high=_INT64 - 1) or older


def _stop(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise InvalidRequest(f"stop must be a string or a list of at most {MAX_STOPS} strings", param="stop")
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise InvalidRequest(f"stop must hold non-empty strings, found {stop!r:.40}", param="stop")
    return tuple(stops)


def _include_usage(given: Mapping[str, object]) -> bool:
    options = given.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
        raise InvalidRequest("stream_options supports include_usage only", param="stream_options")
    if given.get("stream") is not True:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")
    if options.get("include_obfuscation"):
        raise InvalidRequest(
            "include_obfuscation is not supported by this engine",
            param="stream_options.include_obfuscation",
            code="unsupported_parameter",
        )
    include = options.get("include_usage") or False
    if not isinstance(include, bool):
        raise InvalidRequest("include_usage must be true or false", param="stream_options.include_usage")
    return include
