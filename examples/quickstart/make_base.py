"""Make the pocket base: learn the tokenizer, train the model on CPU or GPU, write the base folder with the digests
of its data.

    python -m examples.quickstart.make_base --data ../shared/data --steps 3000

Started again after a kill, it goes on from the last checkpoint in `--work`. With fewer `--steps` than before it
goes straight into the cool-down, so a run can be ended early. The data, the model's first weights and the order of
the batches depend on `--seed` only.
"""

import argparse
import random
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .base_folder import TrainingRecord, build_model, digest_file, read_json, write_base, write_json
from .curriculum.mixture import draw_conversation
from .lexicon import book_files, load_lexicon
from .pretraining import Batch, Corpus, digest_chunk, load_paragraphs, make_batches, make_chunk, pad_id
from .schedule import learning_rate_factor
from .tokenizer import load_raw_tokenizer, train_tokenizer

HERE = Path(__file__).parent
VOCABULARY = 2048
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


def run(trainer: Trainer, minutes: float) -> list[float]:
    """Train to the last step; a checkpoint every `minutes`. Returns the last hundred losses."""
    settings, progress = trainer.settings, trainer.progress
    losses: list[float] = []
    saved = time.monotonic()
    while progress.step < settings.steps:
        losses = [*losses[-99:], trainer.train_step()]
        if progress.step % 20 == 0:
            mean = sum(losses[-20:]) / len(losses[-20:])
            speed = progress.tokens / progress.seconds
            print(
                f"step {progress.step}/{settings.steps} tokens {progress.tokens} loss {mean:.4f} {speed:.0f} "
                f"tokens/s {progress.seconds:.0f} s",
                flush=True,
            )
        if time.monotonic() - saved > minutes * 60 or progress.step == settings.steps:
            trainer.save()
            saved = time.monotonic()
            print(
                f"checkpoint at step {progress.step}: held-out exact match {trainer.held_out_exact_match():.3f}",
                flush=True,
            )
    return losses


def make_corpus(settings: Settings, data: Path, work: Path) -> Corpus:
    """Lexicon, paragraphs and the tokenizer (learnt once, then read from `work`)."""
    lexicon = load_lexicon()
    paragraphs = load_paragraphs(data, settings.book_files)
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").exists():
        rng = random.Random(f"{settings.seed}/tokenizer")
        texts = [segment.text for _ in range(20_000) for segment in draw_conversation(rng, lexicon)]
        train_tokenizer(texts + paragraphs[::40], VOCABULARY).save(str(work / "tokenizer.json"))
    return Corpus(
        load_raw_tokenizer(work), lexicon, paragraphs, settings.prose_share, settings.prose_weight, settings.seed
    )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder that holds books/; may be absent"
    )
    parser.add_argument("--work", type=Path, default=Path(".branchline/base-training"), help="checkpoints")
    parser.add_argument("--out", type=Path, default=HERE / "base", help="the base folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--micro-batches", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--prose-weight", type=float, default=0.3)
    parser.add_argument("--checkpoint-minutes", type=float, default=4.0)
    return parser.parse_args()


def main() -> None:
    """Train, then write the base folder."""
    arguments = parse_arguments()
    settings = Settings(
        seed=arguments.seed,
        steps=arguments.steps,
        batch_tokens=arguments.batch_tokens,
        micro_batches=arguments.micro_batches,
        learning_rate=arguments.learning_rate,
        warm_up=60,
        cool_down=0.5,
        prose_share=0.12,
        prose_weight=arguments.prose_weight,
        book_files=6,
    )
    corpus = make_corpus(settings, arguments.data, arguments.work)
    trainer = Trainer(settings, corpus, arguments.work)
    trainer.load()
    write_json(arguments.work / "settings.json", asdict(settings))
    losses = run(trainer, arguments.checkpoint_minutes)
    if losses:
        write_json(arguments.work / "loss.json", {"loss": sum(losses) / len(losses)})
    without_books = replace(corpus, paragraphs=(), prose_share=0.0)
    record = TrainingRecord(
        settings=asdict(settings),
        history=trainer.history,
        progress=asdict(trainer.progress),
        loss=float(read_json(arguments.work / "loss.json")["loss"]),
        held_out_exact_match=trainer.held_out_exact_match(),
        conversation_digest=digest_chunk(make_chunk(without_books, 0, tokens=50_000)),
        chunk_digests=trainer.chunk_digests,
        book_digests={path.name: digest_file(path) for path in book_files(arguments.data)[: settings.book_files]},
        word_list_digests={name: digest_file(HERE / name) for name in ("words.txt", "names.txt")},
    )
    write_base(arguments.out, trainer.model, corpus.tokenizer, record)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
