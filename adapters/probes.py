"""What the proof of application of a version is made with: its route's own examples, and what its trainer recorded."""

from __future__ import annotations

from dataclasses import dataclass

PROMPTS = 8


@dataclass(frozen=True, slots=True)
class RecordedPrompt:
    """A greedy continuation as the trainer saw it: token ids, and natural-log probabilities (nats, float32) [tokens]
    of those tokens under the adapter and under the base.
    """

    prompt_tokens: tuple[int, ...]
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    base_logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Probes:
    """At most `PROMPTS` user texts, and at most `PROMPTS` recorded prompts; both may be empty."""

    texts: tuple[str, ...] = ()
    recorded: tuple[RecordedPrompt, ...] = ()


NO_PROBES = Probes()
