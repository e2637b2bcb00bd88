"""Methods beside each other, beside a chosen checkpoint, and in a run's precision: units and figures stay right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from tests.trainer_base import Files, colour_rows, encoded, make_files, varied_rows, write_rows
from tests.trainer_methods import Workshop, make_workshop, train_steps, weights
from tests.trainer_runs import execute
from trainer.config import TrainConfig, read_config
from trainer.distillation.drift import Drift
from trainer.errors import ConfigInvalid, LeakFound
from trainer.fisher.folder import load_importance
from trainer.fisher.importance import Diagonal, Importance
from trainer.machine import find_machine
from trainer.methods.build import build_recipe
from trainer.methods.ewc import Budget
from trainer.methods.quadratic import QuadraticPenalty
from trainer.methods.settings import MethodSettings, parse_method
from trainer.model import load_weights


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("together"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.set_num_threads(1)
    return make_files(tmp_path_factory.mktemp("files"))


def method(text: str) -> MethodSettings:
    return TypeAdapter[MethodSettings](MethodSettings).validate_python(parse_method(text))


@pytest.mark.parametrize("methods", [["kl", "kl:non_target=true"], ["replay", "replay:selection=diverse"]])
def test_a_method_that_stands_there_twice_is_refused(files: Files, tmp_path: Path, methods: list[str]) -> None:
    """Terms and reports are known by name: the second would silently take the first one's place."""
    with pytest.raises(ConfigInvalid, match="stands there twice"):
        read_config(TrainConfig, {**files.values, "out": tmp_path, "methods": methods})


def test_rows_and_the_bases_own_answers_are_two_methods(files: Files, tmp_path: Path) -> None:
    values = {**files.values, "out": tmp_path, "methods": ["replay", "replay:selection=self"]}
    assert len(read_config(TrainConfig, values).methods) == 2


@pytest.mark.parametrize("key", ["past", "anchors"])
@pytest.mark.parametrize("name", ["ewc", "mas", "distill", "kl"])
def test_no_method_gets_to_see_a_judged_row(files: Files, tmp_path: Path, key: str, name: str) -> None:
    """Refused where earlier rows are read, whatever method is there to read them: one row of the evaluation."""
    leak = write_rows(tmp_path / "leak.jsonl", [*varied_rows(4), *colour_rows(1, start=1000)])
    with pytest.raises(LeakFound, match=f"1 of .* also stand in {key} leak"):
        execute({**files.values, key: [leak], "methods": [name]}, tmp_path / "out")


@pytest.mark.parametrize("masking_last", [True, False])
def test_masked_tokens_do_not_count_in_the_weight_of_a_penalty(
    workshop: Workshop, tmp_path: Path, masking_last: bool
) -> None:
    """T_new is what is supervised. Expected: T_old / T_new with the tokens that are left after the mask."""
    past = replace(workshop.past(), start=tmp_path)
    context = workshop.context(past=past, cache=tmp_path)
    methods = [method("masking:threshold=300"), method("ewc:sequences=2")]
    recipe = build_recipe(methods[::-1] if masking_last else methods, context)
    [rewrite] = recipe.rewrite
    kept = sum(one.supervised for one in rewrite(context.examples))
    assert 0 < kept < context.supervised
    [penalty] = recipe.penalties
    assert isinstance(penalty, QuadraticPenalty)
    assert penalty.weight == past.tasks[0].supervised / kept


def test_from_the_base_the_weight_of_several_tasks_is_that_of_one(workshop: Workshop, tmp_path: Path) -> None:
    """T_old := T_new where the base is the reference, whatever number of tasks speaks for it: the weight is λ_rel."""
    context = workshop.context(past=workshop.past(tasks=2), cache=tmp_path)
    [penalty] = build_recipe([method("online_ewc:weight=3,sequences=2")], context).penalties
    assert isinstance(penalty, QuadraticPenalty)
    assert penalty.weight == 3.0


def test_a_budget_is_measured_in_float32_in_a_run_of_bfloat16(workshop: Workshop, tmp_path: Path) -> None:
    """The start was read in float32: read in bfloat16, a model that has not moved at all would seem to have."""
    anchors = workshop.past().tasks[0].examples
    past = replace(workshop.past(), anchors=anchors, start=tmp_path)
    context = workshop.context(past=past, cache=tmp_path, machine=find_machine("bf16"))
    measured: list[float] = []

    class Listening(Drift):
        def measure(self, model: Any) -> float:
            measured.append(super().measure(model))
            return measured[-1]

    recipe = build_recipe([method("ewc:sequences=2,budget=0.1")], context)
    [budget] = recipe.hooks
    assert isinstance(budget, Budget)
    budget._drift = drift = Listening(context.model, anchors, context.loaded.pad_token, context.batch_tokens)
    train_steps(context, recipe, Budget.EVERY)
    assert measured == [Drift.measure(drift, context.model)]


def spoiled(files: Files, folder: Path) -> Mapping[str, object]:
    """Settings of a run whose first checkpoint is chosen and whose last is far away: the rate explodes on the way."""
    past = write_rows(folder / "past.jsonl", varied_rows(12))
    methods = ["ewc:sequences=4,weight=0.001", "si", "ema:decay=0.01"]
    values = {**files.values, "past": [past], "methods": methods, "guardrails": [], "checkpoints": 6}
    return {**values, "max_steps": 18, "lr": 0.5, "schedule": "constant", "warmup": 0.9}


def test_what_a_method_reports_is_of_the_checkpoint_that_is_kept(files: Files, tmp_path: Path) -> None:
    """The KL in run.json is the published adapter's, measured again here from its folder: 1e-4 for rounding."""
    record: Any = execute(spoiled(files, tmp_path), tmp_path / "out")
    assert record["result"]["step"] < record["steps"]
    context = Workshop(files.base.parent).context(effect=0.0)
    drift = Drift(context.model, encoded(context.loaded, varied_rows(12)), context.loaded.pad_token, 2048)
    load_weights(context.model, tmp_path / "out/adapter")
    assert record["methods"]["ewc"]["measured_kl"] == pytest.approx(drift.measure(context.model), rel=1e-4)


def test_the_importance_of_a_path_does_not_depend_on_which_of_its_points_is_kept(
    workshop: Workshop, tmp_path: Path
) -> None:
    left = []
    for kept in ("last", "first"):
        context = workshop.context()
        start = weights(context.model)
        recipe = build_recipe([method("si")], context)
        train_steps(context, recipe, 3)
        if kept == "first":
            context.model.load_state_dict(start, strict=False)
        (folder := tmp_path / kept).mkdir()
        recipe.finish["si"](context.model, folder)
        left.append(load_importance(folder / "importance"))
    one, two = left
    assert all(torch.equal(values_of(one, name), values_of(two, name)) for name in one.layers)
    assert any(bool(values_of(one, name).any()) for name in one.layers)


def values_of(importance: Importance, name: str) -> Tensor:
    layer = importance.layers[name]
    assert isinstance(layer, Diagonal)
    return layer.values
