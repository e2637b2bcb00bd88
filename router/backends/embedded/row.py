"""One sequence in the decoder: what was asked (`Job`) and how far it is (`Row`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...errors import EngineFailed
from ...sampling import Sampling
from ...types import Chunk, FinishReason, Usage
from ..stops import StopScanner
from .choose import Choice
from .detokenize import Detokenizer
from .lora import Adapter

Item = Chunk | EngineFailed


@dataclass(slots=True, eq=False)
class Job:
    """A prompt to continue. `sink` gets chunks or one failure, on the event loop; `cancelled` may be set by anyone.

    `watch` sees the row's logits [vocabulary] and the token chosen at every step, on the decoder's thread.
    An `urgent` job passes the queue and the row limit: it is the engine's own.
    """

    ids: tuple[int, ...]
    adapter: Adapter | None
    sampling: Sampling
    budget: int
    sink: Callable[[Item], None]
    watch: Callable[[Tensor, int], None] | None = None
    urgent: bool = False
    cancelled: bool = False


class Row:
    """A job in the batch."""

    def __init__(self, job: Job, decode: Callable[[list[int]], str], end_tokens: frozenset[int]) -> None:
        self.job = job
        self.choice = Choice(job.sampling.temperature, job.sampling.top_p, _generator(job.sampling.seed))
        self.last_token = job.ids[-1]
        self._end_tokens = end_tokens
        self._detokenizer = Detokenizer(decode)
        self._stops = StopScanner(job.sampling.stop)
        self._generated = 0

    def advance(self, token: int) -> Chunk:
        """Take the token chosen; the chunk may be empty, and carries a finish reason when the row is done."""
        self.last_token = token
        self._generated += 1
        if token in self._end_tokens:
            return self._finish("", "stop")
        text = self._stops.push(self._detokenizer.push(token))
        if self._stops.found:
            return self._finish(text, "stop")
        return self._finish(text, "length") if self._generated >= self.job.budget else Chunk(text)

    def _finish(self, text: str, reason: FinishReason) -> Chunk:
        if not self._stops.found:
            text += self._stops.push(self._detokenizer.flush())
        text += self._stops.flush()
        usage = Usage(len(self.job.ids), self._generated)
        return Chunk(text, "stop" if self._stops.found else reason, usage)


def _generator(seed: int | None) -> torch.Generator:
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    return generator
