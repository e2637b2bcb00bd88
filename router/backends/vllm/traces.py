"""Greedy answers of vLLM as numbers, and how far two of them are apart. Pure: no I/O.

A `Step` is one generated token and the log-probabilities (nats) vLLM lists for that position: the top 5. Tokens are
written `token_id:N` (`return_tokens_as_token_ids`), because different tokens may have the same text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adapters.probes import RecordedPrompt

from ...errors import EngineFailed

TOP = 5
LEAST = 1e-4  # probabilities are told apart down to this distance from 0 and 1; closer, float32 itself is noise


@dataclass(frozen=True, slots=True)
class Step:
    """One generated token; `top` maps the listed tokens, the generated one among them, to log-probabilities."""

    token: str
    top: Mapping[str, float]


Trace = Sequence[Step]


def token_name(token: int) -> str:
    """How vLLM writes a token id where it is asked for token ids."""
    return f"token_id:{token}"


def chat_trace(answer: Mapping[str, Any]) -> list[Step]:
    """The steps of a chat completion; raises `EngineFailed` where it holds no usable log-probabilities."""
    try:
        return [
            _step(step["token"], step["logprob"], {one["token"]: one["logprob"] for one in step["top_logprobs"]})
            for step in answer["choices"][0]["logprobs"]["content"]
        ]
    except (LookupError, TypeError, ValueError) as error:
        raise _unusable(error) from error


def completion_trace(answer: Mapping[str, Any]) -> list[Step]:
    """The steps of a text completion; raises `EngineFailed` where it holds no usable log-probabilities."""
    try:
        found = answer["choices"][0]["logprobs"]
        steps = zip(found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
        return [_step(token, logprob, top) for token, logprob, top in steps]
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise _unusable(error) from error


def _step(token: object, logprob: object, top: Mapping[object, object]) -> Step:
    listed = {str(name): _number(value) for name, value in top.items()}
    return Step(str(token), {**listed, str(token): _number(logprob)})


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError(f"{value!r:.20} is no log-probability")
    return float(value)


def _unusable(error: Exception) -> EngineFailed:
    return EngineFailed(f"the engine's answer holds no usable log-probabilities ({type(error).__name__})")


def distance(first: Trace, second: Trace) -> float:
    """The largest difference of log-probabilities in nats, over the steps before which the answers agree.

    A token that only one side lists counts by what is certain: the other side gave it at most its least listed value.
    """
    largest = 0.0
    for one, other in zip(first, second, strict=False):
        largest = max(largest, _step_distance(one.top, other.top))
        if one.token != other.token:
            break
    return largest


def _step_distance(first: Mapping[str, float], second: Mapping[str, float]) -> float:
    both = [abs(first[token] - second[token]) for token in first.keys() & second.keys()]
    least_first, least_second = min(first.values()), min(second.values())
    only_first = [first[token] - least_second for token in first.keys() - second.keys()]
    only_second = [second[token] - least_first for token in second.keys() - first.keys()]
    return max(both + only_first + only_second, default=0.0)


def mismatch(trace: Trace, recorded: RecordedPrompt) -> float:
    """The mean of |log-odds in the engine − log-odds recorded| (nats) of the recorded tokens, over the steps up to
    and including the first at which the engine generates another token. `trace` is not empty.

    Log-odds(p) = log p − log(1 − p): rounding inside an engine moves logits, and log-odds move with them by about as
    much whether p is 0.5 or 0.999. Log-probabilities would hide all that happens close to p = 1.
    """
    differences = []
    for step, token, logprob in zip(trace, recorded.tokens, recorded.logprobs, strict=False):
        differences.append(gap(step, token, logprob))
        if step.token != token_name(token):
            break
    return sum(differences) / len(differences)


def gap(step: Step, token: int, logprob: float) -> float:
    """|log-odds in the engine − log-odds recorded| of one token; where it is not listed, the least it can be."""
    listed = step.top.get(token_name(token))
    if listed is not None:
        return abs(_log_odds(listed) - _log_odds(logprob))
    return max(0.0, _log_odds(logprob) - _log_odds(min(step.top.values())))


def _log_odds(logprob: float) -> float:
    return logprob - math.log(max(-math.expm1(min(logprob, 0.0)), LEAST))
