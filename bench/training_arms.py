"""What the trainer's cost benchmarks train: a second task on the pocket base, from the trainer's own parts.

The earlier stage learns `scan` for a moment and leaves its adapter and what its methods know; the arms start there and
train `nl2regex`, with `legal_clause` and `scan` as the earlier tasks.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adapters.base import find_base
from adapters.rows import sha256_json
from trainer.batches import BatchSource
from trainer.config import TrainConfig
from trainer.data import read_training
from trainer.folder import RunFolder
from trainer.loop import StepReport, train
from trainer.machine import Machine, find_machine
from trainer.methods.build import build_recipe
from trainer.methods.recipe import Context, Recipe
from trainer.model import LoadedBase, LoraShape, add_lora, load_base, save_adapter
from trainer.objective import Objective
from trainer.past import read_past
from trainer.schedule import Budget, LearningRate
from trainer.start import load_start
from trainer.task import find_max_length
from trainer.training import make_batches, make_optimizer

ROOT = Path(__file__).parents[1]
BASE = ROOT / "examples" / "quickstart" / "base"
NEW, EARLIER = "nl2regex", ("legal_clause", "scan")
BATCH_TOKENS = 2152  # padded, at most: 2,048 on average without padding in these rows
STEPS = 100_000  # more than any benchmark takes
ROWS = 2000  # of the new task: reading all of them once is a one-time cost that is told per token
ON_GPU = torch.accelerator.is_available()
_FIRST_STEPS = 12


class Quiet:
    """Watches without a word."""

    stop_requested = False

    def say(self, text: str) -> None:
        """Nothing."""

    def advance(self, what: str, done: float, total: float, note: str = "") -> None:
        """Nothing."""


@dataclass(frozen=True)
class Seconds:
    """What something took, a GPU's work included: `cpu` of this process, all threads, and `wall`."""

    cpu: float
    wall: float

    @property
    def counted(self) -> float:
        """What is compared: wall time where a GPU computes, else CPU time."""
        return self.wall if ON_GPU else self.cpu

    @classmethod
    def now(cls) -> Seconds:
        if ON_GPU:
            torch.accelerator.synchronize()
        return cls(time.process_time(), time.perf_counter())

    def since(self) -> Seconds:
        """From this reading of the clocks until now."""
        now = Seconds.now()
        return Seconds(now.cpu - self.cpu, now.wall - self.wall)


@dataclass(frozen=True)
class Arm:
    """A run just before its first step, with what building its methods took the first time."""

    config: TrainConfig
    loaded: LoadedBase
    model: Any
    machine: Machine
    context: Context
    recipe: Recipe
    built: Seconds

    def batches(self) -> BatchSource:
        """The stream of such a run."""
        return make_batches(self.config, self.context.examples, self.recipe, self.loaded.pad_token)[0]

    def steps(self, batches: BatchSource) -> Iterator[StepReport]:
        """The trainer's own loop, one optimiser step per report."""
        config = self.config
        return train(
            self.model,
            batches,
            Objective(self.recipe.penalties),
            make_optimizer(self.model, config),
            budget=Budget(STEPS),
            learning_rate=LearningRate(config.lr, config.schedule, config.warmup),
            grad_clip=config.grad_clip,
            hooks=self.recipe.hooks,
            seed=config.seed,
            machine=self.machine,
        )


@dataclass(frozen=True)
class Stage:
    """Where things lie. What methods find once is kept in `work` between arms and processes."""

    work: Path
    data: Path
    precision: str

    @property
    def earlier(self) -> RunFolder:
        return RunFolder(self.work / "earlier")

    def file(self, task: str) -> Path:
        """A task's training rows under the task's own name."""
        link = self.work / f"{task}.jsonl"
        if not link.exists():
            link.symlink_to((self.data / "suite" / task / "train.jsonl").resolve())
        return link

    def prepare(self) -> None:
        """The earlier stage, unless it is there."""
        if self.earlier.adapter.is_dir():
            return
        arm = self.build(("si",), task=EARLIER[-1], first=True)
        steps = arm.steps(arm.batches())
        for _ in range(_FIRST_STEPS):
            next(steps)
        save_adapter(arm.model, self.earlier.adapter, arm.loaded.base.id)
        for name, finish in arm.recipe.finish.items():
            (self.earlier.methods / name).mkdir(parents=True)
            finish(arm.model, self.earlier.methods / name)

    def build(self, methods: Sequence[str], *, task: str = NEW, first: bool = False) -> Arm:
        """A fresh model with its methods; the first stage starts from the base and remembers nothing."""
        config = self._config(methods, task, () if first else EARLIER, None if first else self.earlier.adapter)
        machine = find_machine(config.precision)
        loaded = load_base(find_base(str(BASE)), machine.device)
        torch.manual_seed(config.seed)
        model = add_lora(loaded, LoraShape.of(config))
        if config.start:
            load_start(model, config.start, loaded.base)
        longest = find_max_length(config.max_length, loaded)
        examples = read_training(config.data, loaded.tokenizer, loaded.end_tokens, longest).examples[:ROWS]
        past = read_past(config, loaded, longest, ())
        cache = self.work / "cache" / sha256_json([task, list(methods), self.precision])[:16]
        cache.mkdir(parents=True, exist_ok=True)
        quiet = Quiet()
        context = Context(
            loaded, model, examples, past, frozenset(), config.seed, config.batch_tokens, cache, quiet, machine
        )
        started, kept = Seconds.now(), cache.with_suffix(".json")
        recipe = build_recipe(config.methods, context)
        if not kept.exists():
            kept.write_text(json.dumps(asdict(started.since())), encoding="utf-8")
        built = Seconds(**json.loads(kept.read_text(encoding="utf-8")))
        return Arm(config, loaded, model, machine, context, recipe, built)

    def _config(self, methods: Sequence[str], task: str, past: tuple[str, ...], start: Path | None) -> TrainConfig:
        values: dict[str, object] = {
            "name": "cost",
            "base": str(BASE),
            "data": self.file(task),
            "eval": self.file(task),
            "out": self.work / "out",
            "past": tuple(self.file(one) for one in past),
            "adapters": (start,) if start else (),
            "start": start,
            "methods": tuple(methods),
            "precision": self.precision,
            "batch_tokens": BATCH_TOKENS,
            "lr": 2e-3,
        }
        return TrainConfig.model_validate(values)
