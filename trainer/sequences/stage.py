"""One stage of a sequence: trained as a run trains, but never chosen among checkpoints; the last weights count."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapters.base import Base
from adapters.manifests import weights_digest
from adapters.rows import sha256_json

from ..config import TrainConfig
from ..data import Dataset, Encoded
from ..errors import FolderOccupied
from ..failures import told_clearly
from ..folder import RunFolder, read_versions
from ..machine import find_machine
from ..methods.build import build_recipe
from ..methods.recipe import Context
from ..model import LoadedBase, LoraShape, add_lora, load_base, load_weights, save_adapter
from ..observer import Observer, interrupted
from ..past import Past, PastTask, left_beside
from ..prompt_tuning import add_prompt
from ..training import Training

_WAIT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class TaskData:
    """A task of the sequence in memory. `judged` are the rows that are scored, `anchors` share none of them."""

    name: str
    route: str
    train: Dataset
    judged: Dataset
    anchors: Dataset


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage learns and what came before it. Two stages of one `identity` are the same training.

    `previous` is the stage it starts from, `adapters` the folders of earlier tasks' own adapters. With `prompt_tokens`
    a prompt is tuned in place of a LoRA adapter.
    """

    config: TrainConfig
    learned: tuple[TaskData, ...]
    earlier: tuple[TaskData, ...]
    judged: frozenset[str]
    base: Base
    stages: Path
    previous: Stage | None = None
    adapters: tuple[Path, ...] = ()
    prompt_tokens: int | None = None

    @property
    def identity(self) -> str:
        """sha256 of everything that shapes the result: what came before counts only where something looks at it."""
        settings = {key: value for key, value in self.config.settings.items() if key != "name"}
        parts: dict[str, object] = {
            "settings": settings,
            "base": self.base.fingerprint,
            "data": [task.train.file_digest for task in self.learned],
            "start": self.previous.identity if self.previous else None,
        }
        if self.prompt_tokens:
            parts["prompt_tokens"] = self.prompt_tokens
        if self.config.methods:
            parts["earlier"] = [[task.name, task.train.file_digest, task.anchors.digest] for task in self.earlier]
            parts["judged"] = sha256_json(sorted(self.judged))
            parts["adapters"] = [weights_digest(folder) for folder in self.adapters]
        return sha256_json(parts)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.stages / self.identity[:20])

    @property
    def examples(self) -> tuple[Encoded, ...]:
        return tuple(example for task in self.learned for example in task.train.examples)

    @property
    def past(self) -> Past:
        tasks = tuple(PastTask(task.name, task.train.examples) for task in self.earlier)
        anchors = tuple(example for task in self.earlier for example in task.anchors.examples)
        start = self.previous.folder.adapter if self.previous else None
        return Past(tasks, anchors, start, self.adapters, left_beside(start))


def acting_methods(config: TrainConfig, *, first: bool) -> TrainConfig:
    """The settings without what cannot matter: on a first task arms that differ only there are one and the same."""
    if not first:
        return config
    methods = tuple(
        one.model_copy(update={"weight": 1.0}) if one.on_first_task == "measures" else one
        for one in config.methods
        if one.on_first_task != "nothing"
    )
    return config.model_copy(update={"methods": methods})


def train_stage(stage: Stage, name: str, observer: Observer) -> Mapping[str, object]:
    """Train, or go on with it, or read what is there; returns the stage's run.json. `name` is for messages. May be
    called from several processes at once: one trains, the others wait for it.

    Raises `Interrupted` where the observer asks to stop, and whatever training raises.
    """
    folder, identity = stage.folder, stage.identity
    record = folder.finished(identity)
    if record is None:
        with _own(folder, observer):
            record = folder.finished(identity)
            if record is None:
                observer.say(f"{name}: {', '.join(task.name for task in stage.learned)}")
                with told_clearly():
                    record = _train(stage, folder, identity, observer)
    return record


def _train(stage: Stage, folder: RunFolder, identity: str, observer: Observer) -> Mapping[str, object]:
    config = stage.config
    if config.threads:
        torch.set_num_threads(config.threads)
    machine = find_machine(config.precision)
    loaded = load_base(stage.base, machine.device)
    folder.claim(identity)
    torch.manual_seed(config.seed)
    model = _adapted(stage, loaded)
    if stage.previous:
        load_weights(model, stage.previous.folder.adapter)
    folder.cache.mkdir(parents=True, exist_ok=True)
    examples, past, seed, tokens = stage.examples, stage.past, config.seed, config.batch_tokens
    context = Context(loaded, model, examples, past, stage.judged, seed, tokens, folder.cache, observer, machine)
    started = time.monotonic()
    recipe = build_recipe(config.methods, context)
    built = time.monotonic() - started
    training = Training(config, folder, loaded, model, examples, recipe, observer, machine)
    position = training.run(lambda step: save_adapter(model, folder.adapter, stage.base.id), lambda position: None)
    started = time.monotonic()
    found = training.finish_methods(folder.adapter)
    finishing = time.monotonic() - started
    record: dict[str, object] = {
        "identity": identity,
        "base": {"id": stage.base.id, "fingerprint": stage.base.fingerprint},
        "settings": config.settings,
        "tasks": [task.name for task in stage.learned],
        "data": [task.train.file_digest for task in stage.learned],
        "weights_digest": weights_digest(folder.adapter),
        "training_rows": len(examples),
        "steps": position.step,
        "tokens": position.tokens,
        "training_seconds": round(position.seconds, 2),
        "method_seconds": {"before": round(built, 2), "after": round(finishing, 2)},
        "losses": [round(loss, 5) for loss in position.losses],
        "methods": found,
        "versions": read_versions(),
    }
    folder.finish(record)
    return record


def _adapted(stage: Stage, loaded: LoadedBase) -> Any:
    """The base with a fresh adapter on it, or with virtual tokens before every prompt."""
    config = stage.config
    if stage.prompt_tokens:
        return add_prompt(loaded, stage.prompt_tokens, seed=config.seed)
    return add_lora(loaded, LoraShape.of(config))


@contextmanager
def _own(folder: RunFolder, observer: Observer) -> Iterator[None]:
    """Hold the stage's folder, after whoever holds it now."""
    said = False
    while True:
        with ExitStack() as held:
            try:
                held.enter_context(folder.locked())
            except FolderOccupied:
                if not said:
                    observer.say(f"waiting: another process trains stage {folder.out.name}")
                said = True
            else:
                yield
                return
        if observer.stop_requested:
            raise interrupted("while waiting for another process")
        time.sleep(_WAIT_SECONDS)
