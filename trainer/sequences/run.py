"""A sequence of tasks under several arms and seeds: train every stage, score every task after it, keep every item."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean

import torch

from adapters.base import Base
from adapters.rows import sha256_json

from ..config import TrainConfig
from ..data import Dataset
from ..errors import DataInvalid, Diverged
from ..folder import read_json, write_json
from ..model import load_base
from ..observer import Observer
from .config import ArmPlan, Mode, SequenceConfig
from .data import SequenceData, read_data
from .folder import SequenceFolder
from .scores import Scores
from .stage import Stage, acting_methods, train_stage
from .teacher_forced import Forced

Adapters = Sequence[Path]


@dataclass(frozen=True)
class SequenceRun:
    """The parts of one sequence, built by `prepare_sequence`. Several processes may run arms of one folder."""

    config: SequenceConfig
    base: Base
    data: SequenceData
    folder: SequenceFolder
    scores: Scores
    observer: Observer

    def run(self, arms: Sequence[ArmPlan], seeds: Sequence[int], on_done: Callable[[], None]) -> None:
        """Do what is left to do, seed by seed, arm by arm; `on_done` is called after each.

        An arm that diverges, or whose method finds nothing to learn from, is noted and left; the others go on. Raises
        `Interrupted` where the observer asks to stop; the same call later goes on from there. Rows of any arm that
        plan or files no longer lead to are removed first, so that no report takes them for results.
        """
        self._remove_stale_rows()
        self._score_base()
        on_done()
        for seed in seeds:
            for arm in (one for one in arms if seed in self.config.seeds_of(one)):
                try:
                    self._run_arm(arm, seed)
                except (Diverged, DataInvalid) as error:
                    self.observer.say(f"{arm.name}, seed {seed}: {error}")
                    write_json(self.folder.failure(arm.name, seed), {"error": str(error)})
                on_done()

    def _run_arm(self, arm: ArmPlan, seed: int) -> None:
        """Every stage of an arm, and after each one row of R."""
        self.folder.failure(arm.name, seed).unlink(missing_ok=True)
        done: list[Stage] = []
        for number in self._stages(arm):
            stage = self._plan(arm, seed, number, done)
            row = self.folder.row(arm.name, seed, number)
            done.append(stage)
            known = self._known(done, number)
            if _agrees(row, known):
                continue
            record = train_stage(stage, f"{arm.name}, seed {seed}, stage {number}", self.observer)
            write_json(row, {**known, **self._score_stage(arm, done, number), "training": dict(record)})

    def _remove_stale_rows(self) -> None:
        for arm in self.config.arms:
            for seed in self.config.seeds_of(arm):
                self._remove_stale(arm, seed)

    def _remove_stale(self, arm: ArmPlan, seed: int) -> None:
        """From the first row on that is missing or disagrees, none counts."""
        done: list[Stage] = []
        agrees = True
        for number in self._stages(arm):
            row = self.folder.row(arm.name, seed, number)
            if agrees and row.is_file():
                done.append(self._plan(arm, seed, number, done))
                agrees = _agrees(row, self._known(done, number))
            else:
                agrees = False
            if not agrees:
                row.unlink(missing_ok=True)

    def _known(self, done: Sequence[Stage], number: int) -> dict[str, object]:
        """What a row of R was made of: it still counts where all of it is the same."""
        return {"stages": [one.identity for one in done], "scoring": self._scoring(number)}

    def _stages(self, arm: ArmPlan) -> Sequence[int]:
        """Numbers of the arm's stages, from 1; joint training has only the last."""
        count = len(self.data.tasks)
        return {"base": (), "joint": (count,)}.get(arm.mode, range(1, count + 1))

    def _plan(self, arm: ArmPlan, seed: int, number: int, done: Sequence[Stage]) -> Stage:
        tasks = self.data.tasks
        first = arm.mode == "joint" or not done
        learned = range(len(tasks)) if arm.mode == "joint" else range(number - 1, number)
        plans = [self.config.tasks[index] for index in learned]
        config = acting_methods(self.config.training(arm, plans, seed, self.folder.out), first=first)
        return Stage(
            config=config,
            learned=tuple(tasks[index] for index in learned),
            earlier=() if first else tuple(tasks[: number - 1]),
            judged=self.data.judged,
            base=self.base,
            stages=self.folder.stages,
            previous=done[-1] if done and arm.mode in ("shared", "warm") else None,
            adapters=tuple(one.folder.adapter for one in done) if arm.mode in ("isolated", "warm") else (),
            prompt_tokens=arm.prompt_tokens,
        )

    def _score_stage(self, arm: ArmPlan, done: Sequence[Stage], number: int) -> dict[str, object]:
        """A row of R, oracle-routed and routed, and how far the stage moved what came before it."""
        own = [stage.folder.adapter for stage in done]
        adapters = own if arm.mode in ("isolated", "warm") else own[-1:] * number
        judged = [task.judged for task in self.data.tasks]
        oracle = [
            self._answers([oracle_adapter(arm.mode, adapters, task)] * len(one.examples), one)
            for task, one in enumerate(judged)
        ]
        routed = [self._routed(adapters, number, one) for one in judged]
        guardrails = self.data.guardrails
        return {
            "task": None if arm.mode == "joint" else self.data.tasks[number - 1].name,
            "oracle": summarise(oracle),
            "routed": summarise([one for one in routed if one is not None]) if self.data.decisions else None,
            "anchor_kl": self._anchor_kl(done) if arm.mode == "shared" else None,
            "guardrail_rise": {
                one.name: self._rise(self._answers(own[-1:] * len(one.examples), one), one) for one in guardrails
            },
            "guardrail_rise_routed": {
                one.name: self._rise(self._routed(adapters, number, one), one) for one in guardrails
            },
        }

    def _routed(self, adapters: Adapters, number: int, dataset: Dataset) -> list[Forced] | None:
        """Each row as what it is sent to answers it; `None` where there are no decisions for them."""
        names = [one.route for one in self.data.tasks]
        routes = self.data.routes(number, dataset)
        if routes is None:
            return None
        return self._answers([routed_adapter(adapters, route, names) for route in routes], dataset)

    def _answers(self, chosen: Sequence[Path | None], dataset: Dataset) -> list[Forced]:
        """Each row as its chosen adapter answers it; the most chosen one and the base score the whole file, which
        other stages need too.
        """
        found: dict[int, Forced] = {}
        most = max(set(chosen), key=lambda one: (chosen.count(one), str(one)))
        for adapter in sorted(set(chosen), key=str):
            rows = [index for index, one in enumerate(chosen) if one == adapter]
            scored = rows if adapter not in (most, None) else range(len(chosen))
            items = [dataset.examples[index] for index in scored]
            answers = dict(zip(scored, self.scores.score(adapter, items, dataset.name), strict=True))
            found |= {index: answers[index] for index in rows}
        return [found[index] for index in range(len(chosen))]

    def _anchor_kl(self, done: Sequence[Stage]) -> dict[str, float]:
        """KL(p_previous ‖ p) on each earlier task's anchors, nats per token: what this stage changed."""
        if len(done) < 2:
            return {}
        before, now = done[-2].folder.adapter, done[-1].folder.adapter
        return {
            task.name: self.scores.kl(now, before, task.anchors.examples[: self.config.anchors])
            for task in done[-1].earlier
        }

    def _rise(self, now: Sequence[Forced] | None, guardrail: Dataset) -> float | None:
        """Mean rise of NLL over the base, nats per token."""
        if now is None:
            return None
        base = self.scores.score(None, guardrail.examples, guardrail.name)
        return fmean(after.nll - before.nll for after, before in zip(now, base, strict=True))

    def _score_base(self) -> None:
        known = {"scoring": self._scoring(0)}
        found = read_json(self.folder.base)
        if found is None or found.get("scoring") != known["scoring"]:
            judged = [task.judged for task in self.data.tasks]
            answers = [self._answers([None] * len(one.examples), one) for one in judged]
            row = summarise(answers)
            write_json(self.folder.base, {**known, "oracle": row, "routed": row if self.data.decisions else None})

    def _scoring(self, number: int) -> str:
        """Digest of what a row of R depends on beside the adapters."""
        decisions = self.data.decisions[number - 1].file_digest if self.data.decisions and number else None
        return sha256_json([self._judged, decisions, self.config.precision, self.config.anchors])

    @cached_property
    def _judged(self) -> str:
        datasets = (*(task.judged for task in self.data.tasks), *self.data.guardrails)
        rows = [[one.name, one.file_digest, one.rows] for one in datasets]
        anchors = [task.anchors.digest for task in self.data.tasks]
        return sha256_json([rows, anchors, [task.route for task in self.data.tasks]])


def _agrees(row: Path, known: Mapping[str, object]) -> bool:
    found = read_json(row)
    return found is not None and all(found.get(key) == value for key, value in known.items())


def oracle_adapter(mode: Mode, adapters: Adapters, task: int) -> Path | None:
    """What answers `task` (from 0) with perfect routing, given each learned task's adapter; `None` is the base.

    One shared adapter answers tasks it has not seen too (forward transfer); of several, each answers its own.
    """
    if task < len(adapters):
        return adapters[task]
    return adapters[-1] if mode in ("shared", "joint") and adapters else None


def routed_adapter(adapters: Adapters, route: str | None, routes: Sequence[str]) -> Path | None:
    """What answers a row that was sent to `route`: that task's adapter if it is learned, else the base."""
    learned = dict(zip(routes, adapters, strict=False))
    return learned.get(route) if route is not None else None


def summarise(answers: Sequence[Sequence[Forced]]) -> dict[str, list[float]]:
    """A row of R, as exact match and as target NLL (nats per token, the mean over items)."""
    return {
        "exact": [fmean(one.exact for one in task) for task in answers],
        "nll": [fmean(one.nll for one in task) for task in answers],
    }


def prepare_sequence(config: SequenceConfig, base: Base, folder: SequenceFolder, observer: Observer) -> SequenceRun:
    """Load the base's tokenizer and read every file."""
    if config.threads:
        torch.set_num_threads(config.threads)
    settings: TrainConfig = config.training(config.arms[0], config.tasks[:1], config.seeds[0], folder.out)
    data = read_data(config, settings, load_base(base))
    return SequenceRun(config, base, data, folder, Scores(folder.scores, base, config.precision, observer), observer)
