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
from dataclasses import asdict, replace
from pathlib import Path

from .base_folder import TrainingRecord, digest_file, read_json, write_base, write_json
from .base_trainer import Settings, Trainer
from .curriculum.mixture import draw_conversation
from .lexicon import book_files, load_lexicon
from .pretraining import Corpus, digest_chunk, load_paragraphs, make_chunk
from .tokenizer import load_raw_tokenizer, train_tokenizer

HERE = Path(__file__).parent
VOCABULARY = 2048


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
