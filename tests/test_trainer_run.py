"""Whole runs on a tiny real base: evidence, resuming, and what a folder refuses."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.base import find_base
from adapters.evidence import Evidence, parse_evidence
from adapters.manifests import weights_digest
from adapters.rows import prompt_digest, sha256_file
from tests.trainer_base import Files, colour_rows, make_files, write_rows
from tests.trainer_runs import Watcher, execute
from trainer.assess import assess
from trainer.batches import Batch
from trainer.config import AssessConfig, TrainConfig, read_config
from trainer.data import read_evaluation
from trainer.errors import CheckpointInvalid, ConfigInvalid, FolderOccupied, Interrupted, LeakFound
from trainer.folder import RunFolder
from trainer.methods.recipe import Recipe
from trainer.model import load_base
from trainer.run import prepare


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.set_num_threads(1)
    return make_files(tmp_path_factory.mktemp("task"))


@pytest.fixture(scope="module")
def finished(files: Files, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Evidence]:
    out = tmp_path_factory.mktemp("run") / "out"
    execute({**files.values, "max_steps": 40}, out)
    return out, parse_evidence((out / "evidence.json").read_bytes())


def test_a_run_learns_its_task_and_writes_evidence_bound_to_its_weights(
    files: Files, finished: tuple[Path, Evidence]
) -> None:
    out, evidence = finished
    assert evidence.weights_digest == weights_digest(out / "adapter")
    assert evidence.base_fingerprint == find_base(str(files.base)).fingerprint
    assert evidence.target.file_digest == sha256_file(files.eval)
    assert [one.file_digest for one in evidence.guardrails] == [sha256_file(files.guardrail)]
    assert all(item.adapter.score == 1.0 for item in evidence.target.items)
    assert all(item.base.score == 0.0 for item in evidence.target.items)
    assert sorted(path.name for path in out.iterdir()) == ["adapter", "evidence.html", "evidence.json", "run.json"]
    assert sorted(path.name for path in (out / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_selection_and_evidence_share_no_item_and_the_evidence_names_its_half(
    files: Files, finished: tuple[Path, Evidence]
) -> None:
    _, evidence = finished
    loaded = load_base(find_base(str(files.base)))
    whole = set(read_evaluation(files.eval, "eval", loaded.tokenizer, loaded.end_tokens, 256).rows)
    judged = {item.row for item in evidence.target.items}
    assert judged < whole
    assert evidence.selection["items"] == len(whole) - len(judged)
    assert evidence.target.part != evidence.selection["part"]
    assert evidence.target.part is not None


def test_with_a_selection_file_all_of_the_evaluation_file_is_evidence(files: Files, tmp_path: Path) -> None:
    select = write_rows(tmp_path / "select.jsonl", colour_rows(12, start=2000))
    execute({**files.values, "select": select, "max_steps": 2, "guardrails": []}, tmp_path / "out")
    evidence = parse_evidence((tmp_path / "out" / "evidence.json").read_bytes())
    assert len(evidence.target.items) == 40
    assert evidence.target.part is None
    assert evidence.selection["file_digest"] == sha256_file(select)


def test_the_probe_tells_the_adapter_from_the_base(finished: tuple[Path, Evidence], files: Files) -> None:
    _, evidence = finished
    prompts = evidence.probe["prompts"]
    assert isinstance(prompts, list)
    assert len(prompts) == 8
    for one in prompts:
        assert len(one["tokens"]) == len(one["logprobs"]) == len(one["base_logprobs"])
        assert all(value <= 0 for value in one["logprobs"])
        assert sum(one["logprobs"]) > sum(one["base_logprobs"]) + 1


def test_nothing_written_names_a_path_of_this_machine(finished: tuple[Path, Evidence], files: Files) -> None:
    out, _ = finished
    for file in (out / "run.json", out / "evidence.json", out / "evidence.html", out / "adapter/adapter_config.json"):
        assert str(files.base.parent) not in file.read_text(encoding="utf-8")
        assert str(out) not in file.read_text(encoding="utf-8")


def test_the_page_shows_the_figures_and_needs_nothing_from_outside(finished: tuple[Path, Evidence]) -> None:
    out, evidence = finished
    page = (out / "evidence.html").read_text(encoding="utf-8")
    assert evidence.weights_digest in page
    assert page.count("<svg") == 4
    for outside in ("<script", "src=", 'href="http', "url(http"):
        assert outside not in page


def test_a_run_resumed_again_and_again_equals_the_uninterrupted_one_bit_for_bit(files: Files, tmp_path: Path) -> None:
    values = {**files.values, "dropout": 0.2, "accumulation": 2, "batch_tokens": 128, "max_steps": 7}
    whole = execute(values, tmp_path / "whole")
    resumed: Mapping[str, object] | None = None
    interruptions = 0
    while resumed is None:
        try:
            resumed = execute(values, tmp_path / "resumed", Watcher(patience=4))
        except Interrupted:
            interruptions += 1
    assert interruptions > 2
    assert resumed["weights_digest"] == whole["weights_digest"]
    assert resumed["result"] == whole["result"]
    mine, theirs = (load_file(tmp_path / one / "adapter/adapter_model.safetensors") for one in ("whole", "resumed"))
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_methods_that_change_while_a_run_lasts_go_on_exactly_where_they_were(files: Files, tmp_path: Path) -> None:
    whole, found = trained(files, tmp_path / "whole"), None
    while found is None:
        with contextlib.suppress(Interrupted):
            found = trained(files, tmp_path / "pieces", Watcher(patience=2))
    assert found == whole


def trained(files: Files, out: Path, watcher: Watcher | None = None) -> list[float]:
    """All weights after 6 steps with a penalty that grows and a hook that draws, both from where they were saved."""
    config = read_config(TrainConfig, {**files.values, "out": out, "max_steps": 6, "dropout": 0.2})
    run = prepare(config, find_base(config.base), "a" * 64, RunFolder(out), watcher or Watcher())
    growing = Growing()
    training = replace(run.training, recipe=Recipe(penalties=(growing,), hooks=(growing,)))
    training.run(run.candidates.keep, lambda position: None)
    weights = [one.detach().flatten() for one in run.model.parameters() if one.requires_grad]
    return torch.cat(weights).tolist()


class Growing:
    """A penalty on the weights that grows by what is drawn, from torch's global generator, after every step."""

    name = "growing"

    def __init__(self) -> None:
        self._weight = torch.zeros(())

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        return self._weight * torch.stack([one.square().sum() for one in model.parameters() if one.requires_grad]).sum()

    def before_step(self, model: Any, micro_batches: Sequence[Batch]) -> None:
        """Nothing."""

    def after_step(self, model: Any) -> None:
        self._weight = self._weight + torch.rand(())

    def state(self) -> Mapping[str, Any]:
        return {"weight": self._weight, "kept": [{"as": "plain data", "number": 1}]}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._weight = state["weight"]


def test_a_damaged_state_is_refused_and_left_alone(files: Files, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        execute(files.values, tmp_path / "out", Watcher(patience=2))
    [state] = (tmp_path / "out" / "work" / "states").glob("step-*/state.pt")
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(CheckpointInvalid, match="cannot be read"):
        execute(files.values, tmp_path / "out")
    assert state.is_file()


def test_a_folder_with_another_runs_work_or_a_running_one_is_refused(files: Files, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "out")
    with folder.locked():
        folder.claim("a" * 64)
        with pytest.raises(FolderOccupied, match="another process"), folder.locked():
            pass
        with pytest.raises(FolderOccupied, match="other settings"):
            folder.finished("b" * 64)


def test_routing_decisions_stand_in_the_evidence(files: Files, tmp_path: Path) -> None:
    decisions = write_decisions(files, tmp_path / "decisions.jsonl")
    execute({**files.values, "decisions": decisions, "max_steps": 2}, tmp_path / "out")
    evidence = parse_evidence((tmp_path / "out/evidence.json").read_bytes())
    assert evidence.classifier_digest == "c" * 64
    assert {item.routed_to for item in evidence.target.items} == {"adapter"}
    assert {item.routed_to for one in evidence.guardrails for item in one.items} == {"base"}
    assert not evidence.guardrail_failed, "what the base answers cannot get worse"


def test_rows_of_the_guardrail_or_the_selection_in_the_training_file_are_refused(files: Files, tmp_path: Path) -> None:
    leaked = write_rows(tmp_path / "leaked.jsonl", [("repeat 3", "3"), ("new", "x"), ("newer", "y")])
    with pytest.raises(LeakFound, match="1 of 40 rows of general"):
        execute({**files.values, "data": leaked}, tmp_path / "one")
    select = write_rows(tmp_path / "select.jsonl", colour_rows(1, start=1000))
    with pytest.raises(LeakFound, match="of eval also stand in select"):
        execute({**files.values, "select": select}, tmp_path / "two")


def test_rows_longer_than_the_base_attends_to_are_wrong_settings(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="the base attends to 256"):
        execute({**files.values, "max_length": 300}, tmp_path / "out")


def test_an_existing_folder_gets_the_same_evidence_again(
    files: Files, finished: tuple[Path, Evidence], tmp_path: Path
) -> None:
    out, before = finished
    values = {"base": str(files.base), "eval": files.eval, "guardrails": [files.guardrail], "part": "evidence"}
    config = read_config(AssessConfig, {**values, "out": tmp_path})
    evidence, _ = assess(config, "colour", out / "adapter", find_base(str(files.base)), Watcher())
    assert evidence == parse_evidence((tmp_path / "evidence.json").read_bytes())
    assert (evidence.weights_digest, evidence.target) == (before.weights_digest, before.target)
    assert evidence.guardrails == before.guardrails


def write_decisions(files: Files, path: Path) -> Path:
    """The target's rows go to the adapter, all else to the base."""
    loaded = load_base(find_base(str(files.base)))
    lines = []
    for file, route in ((files.eval, "colour"), (files.guardrail, None)):
        for example in read_evaluation(file, "any", loaded.tokenizer, loaded.end_tokens, 256).examples:
            row = {"row": prompt_digest(example.messages), "route": route, "score": 1.0, "classifier": "c" * 64}
            lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path
