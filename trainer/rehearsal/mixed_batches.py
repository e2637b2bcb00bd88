"""A stream of micro-batches of which a share of the tokens comes from memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..batches import Batch, BatchSource, ShuffledBatches
from ..data import Encoded

_NEW = "new."
_MEMORY = "memory."


class MixedBatches:
    """New and remembered micro-batches by turns, such that `share` of the stream's tokens is remembered.

    Whenever memory is owed tokens, share × all − remembered > 0, the next micro-batch is a remembered one: after every
    micro-batch the debt lies within (−one remembered, share × one new micro-batch]. Micro-batches are not mixed:
    rows of unlike length would pad each other, and one step over several micro-batches (accumulation) holds both
    anyway. The share is of the stream alone: it weighs no term of the loss, whose mean stays over a step's tokens.

    The number of steps is not changed: with share ρ the same budget reads 1 − ρ of the new tokens it would have read.
    """

    def __init__(self, new: BatchSource, memory: BatchSource, share: float) -> None:
        self._new = new
        self._memory = memory
        self._share = share
        self._tokens = {_NEW: 0, _MEMORY: 0}

    @property
    def replayed_share(self) -> float:
        """Share of the tokens so far, padding not counted, that came from memory."""
        return self._tokens[_MEMORY] / max(1, sum(self._tokens.values()))

    def next(self) -> Batch:
        owed = self._share * sum(self._tokens.values()) - self._tokens[_MEMORY]
        kind, source = (_MEMORY, self._memory) if owed > 0 else (_NEW, self._new)
        batch = source.next()
        self._tokens[kind] += batch.tokens
        return batch

    def state(self) -> Mapping[str, int]:
        """The states of both sources under `new.` and `memory.`, and the tokens that each has given."""
        inner = {
            prefix + key: value
            for prefix, source in ((_NEW, self._new), (_MEMORY, self._memory))
            for key, value in source.state().items()
        }
        return inner | {f"{prefix}tokens": tokens for prefix, tokens in self._tokens.items()}

    def restore(self, state: Mapping[str, int]) -> None:
        for prefix, source in ((_NEW, self._new), (_MEMORY, self._memory)):
            source.restore({key.removeprefix(prefix): at for key, at in state.items() if key.startswith(prefix)})
            self._tokens[prefix] = state[f"{prefix}tokens"]


def memory_batches(rows: Sequence[Encoded], *, batch_tokens: int, seed: int, pad_token: int) -> ShuffledBatches:
    """Micro-batches of remembered rows. A memory smaller than one micro-batch is repeated until it fills one, because
    a step on a handful of tokens costs and moves as much as a full one.
    """
    padded = len(rows) * max(len(row) for row in rows)
    repeated = list(rows) * max(1, batch_tokens // padded)
    return ShuffledBatches(repeated, batch_tokens=batch_tokens, seed=seed, pad_token=pad_token)
