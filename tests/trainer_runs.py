"""Whole runs in this process, and who watches them."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path

from adapters.base import Base, find_base
from adapters.rows import sha256_file
from trainer.config import TrainConfig, read_config
from trainer.folder import RunFolder
from trainer.run import prepare
from trainer.terminal import is_main_process


class Watcher:
    """An observer that asks to stop after `patience` questions, and remembers what it heard."""

    def __init__(self, patience: int | None = None) -> None:
        self._patience = patience
        self.heard: list[str] = []

    @property
    def stop_requested(self) -> bool:
        if self._patience is None:
            return False
        self._patience -= 1
        return self._patience < 0

    def say(self, text: str) -> None:
        self.heard.append(text)

    def advance(self, what: str, done: float, total: float, note: str = "") -> None:
        assert 0 <= done <= total


def execute(values: Mapping[str, object], out: Path, watcher: Watcher | None = None) -> Mapping[str, object]:
    config = read_config(TrainConfig, {**values, "out": out})
    base = find_base(config.base)
    identity = identity_of(config, base)
    folder = RunFolder(out)
    assert folder.finished(identity) is None
    with folder.locked() if is_main_process() else contextlib.nullcontext():
        return prepare(config, base, identity, folder, watcher or Watcher()).execute()


def identity_of(config: TrainConfig, base: Base) -> str:
    return config.identity(base.fingerprint, {name: sha256_file(file) for name, file in config.files.items()})
