"""One run from files to evidence: train, score candidates on the selection items, choose one, judge it once."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from adapters.base import Base
from adapters.check import FILES
from adapters.rows import sha256_file
from adapters.types import Json

from .candidates import Candidates
from .checkpoint import Position
from .comparison import Comparison
from .config import TrainConfig
from .evaluate import make_evaluator
from .failures import told_clearly
from .folder import RunFolder, read_versions, write_text
from .machine import Machine, find_machine
from .methods.build import build_recipe
from .methods.recipe import Context
from .model import LoadedBase, LoraShape, add_lora, load_base
from .observer import Observer, watch_scoring
from .page import render_page
from .past import read_past
from .probe import take_probe
from .report import Findings, make_evidence, summarise
from .select import Candidate, Choice, choose, decisive_arm, is_exhausted, nll_rises
from .start import load_start
from .task import Task, find_max_length, read_task
from .training import Training, require_deal


@dataclass(frozen=True, slots=True)
class Run:
    """The parts of one run, built by `prepare`."""

    config: TrainConfig
    identity: str
    folder: RunFolder
    loaded: LoadedBase
    model: Any
    task: Task
    training: Training
    comparison: Comparison
    candidates: Candidates
    observer: Observer
    machine: Machine

    def execute(self) -> Mapping[str, object]:
        """Do what is left to do and return the summary that run.json holds.

        Raises `Interrupted` where the observer asks to stop, `OutOfMemory` and `DiskFull`; the same call later goes
        on from there.
        """
        machine = self.machine
        machine.open_tracker(self.config.name, self.config.settings)
        try:
            position = self.training.run(self.candidates.keep, self._score_point)
            with told_clearly():
                machine.on_main(lambda: self._conclude(position))
        finally:
            machine.close_tracker()
        return self.folder.finished(self.identity) or {}

    def _conclude(self, position: Position) -> None:
        scored = self.candidates.score_all(position.candidates)
        choice = choose(scored, self.config.guardrail_bound)
        found = self.training.finish_methods(self.folder.candidate(choice.step))
        self._judge(position, scored, choice, found)

    def _judge(
        self, position: Position, scored: list[Candidate], choice: Choice, found: Mapping[str, Json]
    ) -> Mapping[str, object]:
        """Compare the chosen checkpoint, which the model carries, with the base on the evidence's own items, and write
        everything.
        """
        publish_files(self.folder.candidate(choice.step), self.folder.adapter)
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
            "versions": read_versions(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _score_point(self, position: Position) -> bool:
        """Score the latest candidate; whether the run's patience is at its end."""
        candidate = self.candidates.score(position.step)
        score, nll, _ = candidate.rank
        self.observer.say(
            f"step {candidate.step}: {self.config.metric} {score:.3f}, target NLL {-nll:.3f} nats per token "
            f"after {position.seconds:.0f} s"
        )
        self.machine.log(selection_figures(candidate, self.config.metric), candidate.step)
        patience = self.config.patience
        if patience is None:
            return False
        return is_exhausted(self.candidates.score_all(position.candidates), self.config.guardrail_bound, patience)


def prepare(config: TrainConfig, base: Base, identity: str, folder: RunFolder, observer: Observer) -> Run:
    """Load the base, read every file, and put a fresh adapter on the base, or the one to start from."""
    machine = find_machine(config.precision, config.tracker, folder.out / "tracker")
    require_deal(config.accumulation, machine.processes)
    if config.threads:
        torch.set_num_threads(config.threads)
    observer.say(f"loading base {base.id}")
    loaded = load_base(base, machine.device)
    task = read_task(config, loaded)
    for reason, count in task.train.skipped.items():
        observer.say(f"left out {count} rows of {config.data.name}: {reason}")
    if not config.methods and (config.past or config.anchors or config.adapters):
        observer.say("no method is given: rows and adapters of earlier tasks are not read (name one with --method)")
    torch.manual_seed(config.seed)
    model = add_lora(loaded, LoraShape.of(config))
    if config.start:
        load_start(model, config.start, base)
    claim = folder.claimed(identity) if machine.is_main else contextlib.nullcontext()
    with machine.main_first(), claim:
        context = make_context(config, loaded, model, task, folder, observer, machine)
        recipe = build_recipe(config.methods, context)
    training = Training(config, folder, loaded, model, task.train.examples, recipe, observer, machine)
    evaluator = make_evaluator(config, model, loaded)
    on_batch = watch_scoring(observer)
    comparison = Comparison(evaluator, base.fingerprint, config.name, task.decisions, folder.work, on_batch)
    candidates = Candidates(folder, model, base.id, comparison, task.selecting)
    return Run(config, identity, folder, loaded, model, task, training, comparison, candidates, observer, machine)


def make_context(
    config: TrainConfig,
    loaded: LoadedBase,
    model: Any,
    task: Task,
    folder: RunFolder,
    observer: Observer,
    machine: Machine,
) -> Context:
    """What the methods of the run may know."""
    judged = (*task.selecting.datasets, *task.judging.datasets)
    past = read_past(config, loaded, find_max_length(config.max_length, loaded), judged)
    rows = frozenset(row for dataset in judged for row in dataset.rows)
    folder.cache.mkdir(parents=True, exist_ok=True)
    examples, tokens = task.train.examples, config.batch_tokens
    return Context(loaded, model, examples, past, rows, config.seed, tokens, folder.cache, observer, machine)


def selection_figures(candidate: Candidate, metric: str) -> dict[str, float]:
    """What a tracker shows of one candidate on the selection items; NLL and its rise in nats per target token."""
    score, nll, _ = candidate.rank
    figures = {f"selection/{metric}": score, "selection/nll": -nll}
    for one in candidate.guardrails:
        figures[f"selection/{one.name} nll rise"] = fmean(nll_rises(one.items, decisive_arm(one)))
    return figures


def publish_files(candidate: Path, target: Path) -> None:
    """Copy a candidate's two engine files to `target`, aside first."""
    aside = target.with_name(target.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    for name in FILES:
        shutil.copyfile(candidate / name, aside / name)
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)
