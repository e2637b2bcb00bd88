"""What a frozen teacher finds likely, kept as a few draws per position instead of a whole distribution."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..batches import IGNORED, Batch
from ..data import Encoded
from .teacher import Teacher, read_batches


@dataclass(frozen=True, slots=True)
class Draws:
    """k tokens per position, drawn with replacement from the teacher's p^τ: `ids` (positions, k) int32, `logprobs`
    (positions, k) float16 in nats under p^τ. 6·k bytes a position.
    """

    ids: Tensor
    logprobs: Tensor


class SparseTeacher:
    """Draws for every completion token of every row that was ever asked for.

    A row is known by its token ids, so the same prompt with another answer is another row. What is drawn for a row
    depends on the row, the seed and the teacher's probabilities for it, not on order or batch. Rows that `fill` was
    not given are read when they first come, each by itself: the same bits after a resume.
    """

    def __init__(self, teacher: Teacher, *, temperature: float, draws: int, seed: int, pad_token: int) -> None:
        self._teacher = teacher
        self._temperature = temperature
        self._draws = draws
        self._seed = seed
        self._pad_token = pad_token
        self._rows: dict[str, Draws] = {}
        self.met_late = 0

    @property
    def positions(self) -> int:
        """Positions held."""
        return sum(len(row.ids) for row in self._rows.values())

    def fill(self, examples: Sequence[Encoded], batch_tokens: int, on_rows: Callable[[int], None]) -> None:
        """Read the teacher on `examples`; `on_rows` hears how many are done."""
        done = 0
        for indices, batch in read_batches(examples, batch_tokens, self._pad_token):
            logits = self._teacher(batch)
            for line, index in enumerate(indices):
                example = examples[index]
                key = row_key((*example.prompt, *example.completion))
                self._rows[key] = self._draw(key, logits[line, -len(example.completion) :])
            done += len(indices)
            on_rows(done)

    def look_up(self, batch: Batch) -> Draws:
        """The draws for every supervised position of `batch`, in the order of `divergence.supervised_logits`."""
        real = batch.attention_mask.bool().cpu()
        ids = batch.input_ids.cpu()
        rows = [self._row(batch, line, row_key(ids[line][real[line]].tolist())) for line in range(len(ids))]
        lengths = torch.tensor([len(row.ids) for row in rows])
        columns = torch.arange(1, ids.shape[1] + 1)
        ends = (real * columns).amax(dim=1)  # where a row's completion ends, on whichever side it is padded
        lines, at = (batch.labels.cpu() != IGNORED).nonzero(as_tuple=True)
        chosen = (lengths.cumsum(0) - ends)[lines] + at
        device = batch.labels.device
        drawn = torch.cat([row.ids for row in rows])[chosen], torch.cat([row.logprobs for row in rows])[chosen]
        return Draws(*(one.to(device) for one in drawn))

    def save(self, file: Path) -> None:
        """Write everything held, aside first."""
        aside = file.with_name(file.name + ".partial")
        tensors = {
            "ids": torch.cat([row.ids for row in self._rows.values()]),
            "logprobs": torch.cat([row.logprobs for row in self._rows.values()]),
        }
        lengths = {key: len(row.ids) for key, row in self._rows.items()}
        save_file(tensors, aside, metadata={"rows": json.dumps(lengths)})
        aside.replace(file)

    def load(self, file: Path) -> None:
        """Hold what `save` wrote."""
        with safe_open(file, framework="pt") as opened:
            lengths = json.loads(opened.metadata()["rows"])
            kept = [opened.get_tensor(name).split(list(lengths.values())) for name in ("ids", "logprobs")]
        self._rows.update({key: Draws(*row) for key, *row in zip(lengths, *kept, strict=True)})

    def _row(self, batch: Batch, line: int, key: str) -> Draws:
        if key not in self._rows:
            self._rows[key] = self._draw(key, self._teacher(_alone(batch, line))[0])
            self.met_late += 1
        return self._rows[key]

    def _draw(self, key: str, logits: Tensor) -> Draws:
        """From the logits (completion, vocabulary) of one row."""
        logprobs = torch.log_softmax(logits.cpu().float() / self._temperature, dim=-1)
        seed = int.from_bytes(hashlib.sha256(f"{self._seed}/{key}".encode()).digest()[:8])
        generator = torch.Generator().manual_seed(seed)
        ids = torch.multinomial(logprobs.exp(), self._draws, replacement=True, generator=generator)
        return Draws(ids.int(), logprobs.gather(1, ids).half())


def row_key(token_ids: Sequence[int]) -> str:
    """What a row is known by: a hash of its token ids, prompt and completion."""
    return hashlib.sha256(" ".join(map(str, token_ids)).encode()).hexdigest()


def _alone(batch: Batch, line: int) -> Batch:
    """One row of `batch` without padding, supervised from its first supervised token to its end."""
    real = batch.attention_mask[line].bool()
    ids, labels = batch.input_ids[line][real], batch.labels[line][real]
    first = int((labels != IGNORED).nonzero()[0])
    whole = torch.where(torch.arange(len(ids), device=ids.device) < first, IGNORED, ids)
    return Batch(ids[None], torch.ones_like(ids)[None], whole[None])
