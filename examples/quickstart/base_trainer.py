"""The training run of the pocket base: model, optimizers and data position, saved together and taken up again."""

import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .base_folder import build_model
from .pretraining import Batch, Corpus, digest_chunk, make_batches, make_chunk, pad_id
from .schedule import learning_rate_factor

HELD_OUT_CHUNK = 1_000_000


@dataclass(frozen=True)
class Settings:
    """What decides the weights, beside the code and the books."""

    seed: int
    steps: int
    batch_tokens: int
    micro_batches: int
    learning_rate: float
    warm_up: int
    cool_down: float
    prose_share: float
    prose_weight: float
    book_files: int


@dataclass
class Progress:
    """Where the run stands; saved with every checkpoint."""

    step: int = 0
    chunk: int = 0
    offset: int = 0
    tokens: int = 0
    seconds: float = 0.0


class Trainer:
    """Model, optimizers, data position: everything that a checkpoint holds."""

    def __init__(self, settings: Settings, corpus: Corpus, work: Path) -> None:
        self.settings, self.corpus, self.work = settings, corpus, work
        torch.manual_seed(settings.seed)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = build_model(corpus.tokenizer.get_vocab_size())
        torch.nn.Module.to(self.model, self.device)
        matrices = [p for name, p in self.model.named_parameters() if p.ndim == 2 and "layers" in name]
        others = [p for name, p in self.model.named_parameters() if p.ndim != 2 or "layers" not in name]
        rate = settings.learning_rate
        muon = torch.optim.Muon(matrices, lr=rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
        self.optimizers: list[torch.optim.Optimizer] = [muon, adamw]
        self.progress = Progress()
        self.chunk_digests: list[str] = []
        self.history: list[dict[str, Any]] = []
        self.batches: list[Batch] = []

    def load(self) -> None:
        """Go on from the last checkpoint, if there is one."""
        path = self.work / "checkpoint.pt"
        if path.exists():
            state = torch.load(path, map_location=self.device, weights_only=True)
            self.model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.progress = Progress(**state["progress"])
            self.chunk_digests = list(state["chunk_digests"])
            self.history = list(state["history"])
        if not self.history or self.history[-1]["settings"] != asdict(self.settings):
            self.history.append({"from_step": self.progress.step, "settings": asdict(self.settings)})
        if self.progress.offset:
            self.batches = self._read_chunk()

    def save(self) -> None:
        """Write the checkpoint aside, then rename."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "progress": asdict(self.progress),
            "chunk_digests": self.chunk_digests,
            "history": self.history,
        }
        aside = self.work / "checkpoint.tmp"
        torch.save(state, aside)
        aside.rename(self.work / "checkpoint.pt")

    def _read_chunk(self) -> list[Batch]:
        number = self.progress.chunk
        chunk = make_chunk(self.corpus, number)
        if number == len(self.chunk_digests):
            self.chunk_digests.append(digest_chunk(chunk))
        order = random.Random(f"{self.settings.seed}/order/{number}")
        return make_batches(chunk, self.settings.batch_tokens, pad_id(self.corpus.tokenizer), order)

    def _next_batch(self) -> Batch:
        if not self.batches:
            self.batches = self._read_chunk()
        batch = self.batches[self.progress.offset]
        self.progress.offset += 1
        if self.progress.offset == len(self.batches):
            self.batches, self.progress.offset, self.progress.chunk = [], 0, self.progress.chunk + 1
        return batch

    def loss(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The weighted sum of token losses, and the share of documents whose well-determined tokens are all
        predicted.
        """
        ids = torch.from_numpy(batch.ids).to(self.device)
        weights = torch.from_numpy(batch.weights).to(self.device)[:, 1:]
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(ids[:, :-1], use_cache=False).logits
        losses = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        with torch.no_grad():
            wrong = (logits.argmax(-1) != ids[:, 1:]) & (weights == 1.0)
            exact = (~wrong.any(1)).float().mean()
        return (losses * weights.flatten()).sum(), exact

    def train_step(self) -> float:
        """One optimizer step; returns the weighted mean loss in nats a token."""
        started = time.monotonic()
        batches = [self._next_batch() for _ in range(self.settings.micro_batches)]
        weight = float(sum(batch.weights[:, 1:].sum() for batch in batches))
        total = 0.0
        for batch in batches:
            loss, _ = self.loss(batch)
            (loss / weight).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
            self.progress.tokens += int(batch.ids.size)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        settings = self.settings
        factor = learning_rate_factor(self.progress.step, settings.steps, settings.warm_up, settings.cool_down)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * factor
            optimizer.step()
            optimizer.zero_grad()
        self.progress.step += 1
        self.progress.seconds += time.monotonic() - started
        return total / weight

    @torch.no_grad()
    def held_out_exact_match(self) -> float:
        """Share of single unseen exchanges whose whole answer is the greedy one."""
        rng = random.Random(f"{self.settings.seed}/{HELD_OUT_CHUNK}")
        corpus = replace(self.corpus, paragraphs=(), prose_share=0.0)
        batches = make_batches(make_chunk(corpus, HELD_OUT_CHUNK, tokens=30_000), 8192, pad_id(corpus.tokenizer), rng)
        rows = sum(len(batch.ids) for batch in batches)
        return sum(float(self.loss(batch)[1]) * len(batch.ids) for batch in batches) / rows
