"""One run from files to evidence: train, score candidates on the selection items, choose one, judge it once."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import reduce
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from adapters.base import Base
from adapters.check import FILES
from adapters.rows import sha256_file
from adapters.types import Json

from .batches import BatchSource, ShuffledBatches
from .candidates import Candidates
from .checkpoint import Position, restore_checkpoint, save_checkpoint
from .comparison import Comparison
from .config import TrainConfig
from .evaluate import make_evaluator
from .folder import RunFolder, write_text
from .loop import StepReport, train
from .methods.build import build_recipe
from .methods.recipe import Context, Recipe
from .model import LoadedBase, LoraShape, add_lora, load_base, load_weights
from .objective import Objective
from .observer import Observer, interrupted, watch_scoring
from .page import render_page
from .past import read_past
from .probe import take_probe
from .report import Findings, make_evidence, summarise
from .schedule import Budget, LearningRate
from .select import Candidate, choose
from .task import Task, find_max_length, read_task

SAVE_EVERY_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Run:
    """The parts of one run, built by `prepare`."""

    config: TrainConfig
    identity: str
    folder: RunFolder
    loaded: LoadedBase
    model: Any
    task: Task
    recipe: Recipe
    comparison: Comparison
    candidates: Candidates
    observer: Observer

    def execute(self) -> Mapping[str, object]:
        """Do what is left to do and return the summary that run.json holds.

        Raises `Interrupted` where the observer asks to stop; the same call later goes on from there.
        """
        position = self.train()
        found = self.finish_methods()
        scored = self.candidates.score_all(position.candidates)
        return self.judge(position, scored, found)

    def train(self) -> Position:
        """Train from the latest saved state to the end of the budget, scoring candidates on the way."""
        config, recipe = self.config, self.recipe
        plain = ShuffledBatches(
            reduce(lambda examples, rewrite: tuple(rewrite(examples)), recipe.rewrite, self.task.train.examples),
            batch_tokens=config.batch_tokens,
            seed=config.seed,
            pad_token=self.loaded.pad_token,
        )
        batches: BatchSource = plain
        for wrap in recipe.wrap:
            batches = wrap(batches)
        budget = make_budget(config, plain.per_epoch)
        optimizer = make_optimizer(self.model, config)
        parts = recipe.stateful
        position = restore_checkpoint(self.folder.states, self.model, optimizer, batches, parts) or Position()
        if position.step:
            self.observer.say(f"going on from step {position.step}")
        reports = train(
            self.model,
            batches,
            Objective(recipe.penalties),
            optimizer,
            budget=budget,
            learning_rate=LearningRate(config.lr, config.schedule, config.warmup),
            accumulation=config.accumulation,
            grad_clip=config.grad_clip,
            hooks=recipe.hooks,
            step=position.step,
            seconds=position.seconds,
            tokens=position.tokens,
        )
        saved = time.monotonic()
        for report in reports:
            due = passes_point(budget, position, report, config.checkpoints)
            position = advanced(position, report, due)
            if due:
                self.candidates.keep(report.step)
            stopping = self.observer.stop_requested
            if due or stopping or time.monotonic() - saved > SAVE_EVERY_SECONDS:
                base_id = self.loaded.base.id
                save_checkpoint(self.folder.states, self.model, optimizer, batches, position, base_id, parts)
                saved = time.monotonic()
            if stopping:
                raise interrupted(f"at step {report.step}")
            note = f"loss {report.loss:.3f}, {position.tokens / position.seconds:,.0f} tokens/s"
            self.observer.advance("training", report.progress, 1.0, note)
            if due:
                self._say_score(self.candidates.score(report.step), position)
        return position

    def finish_methods(self) -> Mapping[str, Mapping[str, Json]]:
        """What each method found and left for later stages."""
        found = {}
        for name, finish in self.recipe.finish.items():
            left = self.folder.methods / name
            left.mkdir(parents=True, exist_ok=True)
            found[name] = finish(self.model, left)
            if not any(left.iterdir()):
                left.rmdir()
        return found

    def judge(
        self, position: Position, scored: list[Candidate], found: Mapping[str, Mapping[str, Json]]
    ) -> Mapping[str, object]:
        """Choose the checkpoint, compare it with the base on the evidence's own items, write everything."""
        choice = choose(scored, self.config.guardrail_bound)
        chosen = self.folder.candidate(choice.step)
        load_weights(self.model, chosen)
        publish_files(chosen, self.folder.adapter)
        judging = self.task.judging
        findings = Findings(
            target=self.comparison.compare(judging.target),
            guardrails=tuple(self.comparison.compare(dataset) for dataset in judging.guardrails),
            bound=self.config.guardrail_bound,
            candidates=tuple(scored),
            choice=choice,
            losses=position.losses,
        )
        probe = take_probe(self.model, self.task.train.examples, self.loaded.pad_token)
        evidence = make_evidence(findings, self.folder.adapter, self.loaded.base, self.task.decisions, probe)
        write_text(self.folder.evidence, evidence.to_json())
        write_text(self.folder.page, render_page(self.config.name, self.loaded.base.id, findings, evidence))
        record = self._record(position) | {"result": summarise(findings), "evidence_digest": evidence.digest}
        record["weights_digest"] = evidence.weights_digest
        record["methods"] = found
        self.folder.finish(record)
        return record

    def _record(self, position: Position) -> dict[str, object]:
        """What run.json says of how this came to be: no path, no machine."""
        config = self.config
        return {
            "identity": self.identity,
            "name": config.name,
            "base": {"id": self.loaded.base.id, "fingerprint": self.loaded.base.fingerprint},
            "settings": config.settings,
            "files": {name: {"file": file.name, "sha256": sha256_file(file)} for name, file in config.files.items()},
            "training_rows": len(self.task.train.examples),
            "left_out": dict(self.task.train.skipped),
            "steps": position.step,
            "tokens": position.tokens,
            "training_seconds": round(position.seconds, 2),
            "tokens_per_second": round(position.tokens / position.seconds),
            "versions": {name: version(name) for name in ("branchline", "torch", "transformers", "peft")},
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _say_score(self, candidate: Candidate, position: Position) -> None:
        score, nll, _ = candidate.rank
        self.observer.say(
            f"step {candidate.step}: {self.config.metric} {score:.3f}, target NLL {-nll:.3f} nats per token "
            f"after {position.seconds:.0f} s"
        )


def prepare(config: TrainConfig, base: Base, identity: str, folder: RunFolder, observer: Observer) -> Run:
    """Load the base, read every file, and put a fresh adapter on the base."""
    if config.threads:
        torch.set_num_threads(config.threads)
    observer.say(f"loading base {base.id}")
    loaded = load_base(base)
    task = read_task(config, loaded)
    for reason, count in task.train.skipped.items():
        observer.say(f"left out {count} rows of {config.data.name}: {reason}")
    folder.claim(identity)
    torch.manual_seed(config.seed)
    shape = LoraShape(config.rank, config.alpha, config.targets, config.dropout, config.rslora)
    model = add_lora(loaded, shape)
    if config.start:
        load_weights(model, config.start)
    recipe = build_recipe(config.methods, make_context(config, loaded, model, task, folder, observer))
    evaluator = make_evaluator(config, model, loaded)
    on_batch = watch_scoring(observer)
    comparison = Comparison(evaluator, base.fingerprint, config.name, task.decisions, folder.work, on_batch)
    candidates = Candidates(folder, model, base.id, comparison, task.selecting)
    return Run(config, identity, folder, loaded, model, task, recipe, comparison, candidates, observer)


def make_context(
    config: TrainConfig, loaded: LoadedBase, model: Any, task: Task, folder: RunFolder, observer: Observer
) -> Context:
    """What the methods of the run may know."""
    judged = (*task.selecting.datasets, *task.judging.datasets)
    past = read_past(config, loaded, find_max_length(config.max_length, loaded), judged)
    rows = frozenset(row for dataset in judged for row in dataset.rows)
    cache = folder.work / "methods"
    cache.mkdir(parents=True, exist_ok=True)
    examples = task.train.examples
    return Context(loaded, model, examples, past, rows, config.seed, config.batch_tokens, cache, observer)


def make_budget(config: TrainConfig, per_epoch: int) -> Budget:
    steps = max(1, math.ceil(config.epochs * per_epoch / config.accumulation))
    return Budget(min(steps, config.max_steps or steps), config.max_seconds, config.max_tokens)


def make_optimizer(model: Any, config: TrainConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(parameters, lr=config.lr, weight_decay=config.weight_decay, fused=True)


def passes_point(budget: Budget, position: Position, report: StepReport, points: int) -> bool:
    """Whether the step of `report` passes one of the run's evenly spaced evaluation points."""
    before = budget.progress(position.step, position.seconds, position.tokens)
    return math.floor(report.progress * points) > math.floor(before * points)


def advanced(position: Position, report: StepReport, due: bool) -> Position:
    return replace(
        position,
        step=report.step,
        seconds=report.seconds,
        tokens=position.tokens + report.tokens,
        losses=(*position.losses, report.loss),
        candidates=(*position.candidates, report.step) if due else position.candidates,
    )


def publish_files(candidate: Path, target: Path) -> None:
    """Copy a candidate's two engine files to `target`, aside first."""
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(candidate / name, aside / name)
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)
