"""What goes wrong in a run says so in one line, and what was saved before is kept."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.base import find_base
from tests.trainer_base import Files, make_files
from tests.trainer_runs import Watcher, execute
from trainer.batches import Batch
from trainer.config import TrainConfig, read_config
from trainer.errors import BaseUnusable, ConfigInvalid, DiskFull, Diverged, Interrupted, OutOfMemory, TrainerError
from trainer.failures import told_clearly
from trainer.folder import RunFolder
from trainer.machine import require_tracker
from trainer.methods.recipe import Recipe
from trainer.objective import Penalty
from trainer.run import prepare

TERABYTES = 2**50


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.set_num_threads(1)
    return make_files(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def start(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter of a short run of rank 4, α 8, with rsLoRA's scale 8/√4 = 4."""
    out = tmp_path_factory.mktemp("start") / "out"
    execute({**files.values, "rslora": True, "max_steps": 4, "guardrails": []}, out)
    return out / "adapter"


def train_with(files: Files, out: Path, penalty: Penalty) -> None:
    """A run of 12 steps, first interrupted after its second, and gone on with under `penalty`."""
    values = {**files.values, "guardrails": []}
    with pytest.raises(Interrupted):
        execute(values, out, Watcher(patience=1))
    config = read_config(TrainConfig, {**values, "out": out})
    run = prepare(config, find_base(config.base), "a" * 64, RunFolder(out), Watcher())
    replace(run.training, recipe=Recipe(penalties=(penalty,))).run(run.candidates.keep, lambda position: None)


def saved_steps(out: Path) -> list[str]:
    return [one.name for one in (out / "work/states").iterdir()]


@pytest.mark.parametrize(
    ("work", "error", "words"),
    [
        (lambda logits: torch.empty(TERABYTES), OutOfMemory, "set gradient_checkpointing"),
        (lambda logits: bytearray(TERABYTES), OutOfMemory, "set gradient_checkpointing"),
        (lambda logits: logits.detach().mul_(torch.nan), Diverged, "lower the learning rate"),
    ],
    ids=["torch memory", "memory", "nan"],
)
def test_memory_that_ends_and_a_loss_that_is_no_number_keep_the_saved_state(
    files: Files, tmp_path: Path, work: Callable[[Tensor], object], error: type[TrainerError], words: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(error, match=words) as caught:
        train_with(files, out, Spoiled(work))
    assert "\n" not in str(caught.value)
    assert saved_steps(out) == ["step-00000002"]


class Spoiled:
    """A penalty that does `work` on its first call and, where that returns a tensor, adds its sum."""

    name = "spoiled"

    def __init__(self, work: Callable[[Tensor], object]) -> None:
        self._work = work

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        found = self._work(logits)
        return found.sum() if isinstance(found, Tensor) else logits.new_zeros(())


@contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: the system's own error, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("size", [500, 4_000, 60_000])
def test_a_disk_that_is_full_keeps_the_saved_state_and_the_run_goes_on_once_there_is_room(
    files: Files, tmp_path: Path, size: int
) -> None:
    """The limits hit the adapter's config, its weights and the optimiser's state in turn."""
    values, out = {**files.values, "guardrails": [], "max_steps": 4, "checkpoints": 1}, tmp_path / "out"
    with pytest.raises(Interrupted):
        execute(values, out, Watcher(patience=1))
    with files_limited_to(size), pytest.raises(DiskFull, match="make room") as caught:
        execute(values, out, Watcher(patience=1))
    assert "\n" not in str(caught.value)
    assert saved_steps(out) == ["step-00000002"], "nothing half written is left"
    assert execute(values, out)["steps"] == 4


def test_other_errors_of_libraries_are_left_as_they_are() -> None:
    for error in (RuntimeError("shapes differ"), FileNotFoundError(2, "no such file")):
        with pytest.raises(type(error)) as caught, told_clearly():
            raise error
        assert caught.value is error


def test_a_run_starts_from_an_adapter_that_fits_and_rslora_works_end_to_end(
    files: Files, start: Path, tmp_path: Path
) -> None:
    """At a learning rate of nearly 0 the weights after a step are those of the start."""
    values = {**files.values, "rslora": True, "start": start, "lr": 1e-12, "max_steps": 1, "checkpoints": 1}
    record = execute({**values, "guardrails": []}, tmp_path / "out")
    before, after = (load_file(one / "adapter_model.safetensors") for one in (start, tmp_path / "out/adapter"))
    for name in before:
        torch.testing.assert_close(after[name], before[name], atol=1e-10, rtol=1e-6)
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["use_rslora"] is True
    files_of_the_run = record["files"]
    assert isinstance(files_of_the_run, dict)
    assert "start" in files_of_the_run


def test_a_start_that_does_not_fit_is_told_with_every_reason_and_what_to_set(
    files: Files, start: Path, tmp_path: Path
) -> None:
    values = {**files.values, "start": start, "guardrails": []}
    with pytest.raises(ConfigInvalid) as caught:
        execute({**values, "rank": 8, "targets": ["q_proj"]}, tmp_path / "out")
    layers, shape, scale = caught.value.problems
    assert "this run q_proj: set targets to those of the start" in layers
    assert "has shape (4, 48), this run needs (8, 48): set rank to 4" in shape
    assert "its scale is 4, this run's 1: set alpha to 8 and rslora to True" in scale
    assert not (RunFolder(tmp_path / "out").work / "run.json").exists(), "what cannot begin claims no folder"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"use_dora": True}, "DoRA is not plain LoRA"),
        ({"base_model_name_or_path": "other/base"}, "names base 'other/base'"),
    ],
)
def test_a_start_that_is_no_plain_lora_of_this_base_is_refused(
    files: Files, start: Path, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    folder = shutil.copytree(start, tmp_path / "start")
    config = folder / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change), encoding="utf-8")
    with pytest.raises(ConfigInvalid, match=words):
        execute({**files.values, "rslora": True, "start": folder, "guardrails": []}, tmp_path / "out")


def test_a_tokenizer_with_more_tokens_than_the_base_is_refused(files: Files, tmp_path: Path) -> None:
    base = shutil.copytree(files.base, tmp_path / "tiny")
    tokenizer = json.loads((base / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    token = max(vocabulary, key=lambda one: vocabulary[one])
    assert vocabulary[token] < 400
    for one in ("y", "e", "s", "yes", "Ġyes"):
        if one in vocabulary:
            vocabulary[one] += 400
    (base / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(
        BaseUnusable, match=r"train\.jsonl: the tokenizer gives token id \d+, the base knows 400 tokens"
    ):
        execute({**files.values, "base": str(base), "guardrails": []}, tmp_path / "out")


def test_a_tracker_that_is_unknown_or_not_installed_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match=r"unknown tracker 'tensorbord', known are .*tensorboard"):
        require_tracker("tensorbord")
    with pytest.raises(ConfigInvalid, match="dvclive is not installed"):
        require_tracker("dvclive")
