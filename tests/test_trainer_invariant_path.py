"""The change of outputs from step to step, against brute force and against the step it promises."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer_methods import (
    Workshop,
    add_dropout,
    assert_exact_resume,
    assert_quiet,
    make_workshop,
    same,
    train_steps,
    weights,
)
from trainer.batches import collate
from trainer.data import Encoded
from trainer.errors import ConfigInvalid, LeakFound
from trainer.methods.invariant_path import OutputPath, build, find_anchors
from trainer.methods.recipe import Context, Recipe
from trainer.methods.settings import InvariantPath
from trainer.past import Past

SETTINGS = InvariantPath(weight=2.0, rows=3)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("path"))


def path_of(recipe: Recipe) -> OutputPath:
    (path,) = recipe.hooks
    assert isinstance(path, OutputPath)
    assert recipe.penalties == (path,)
    return path


def value(path: OutputPath, context: Context) -> Tensor:
    return path(context.model, collate(context.examples[:2], context.loaded.pad_token), torch.zeros(()))


def distributions(model: Any, rows: list[Encoded]) -> list[Tensor]:
    """log p in float64 at every supervised position, one row at a time, without padding."""
    found = []
    with torch.no_grad():
        for row in rows:
            logits = model(input_ids=torch.tensor([[*row.prompt, *row.completion]])).logits[0].double()
            found += list(logits[len(row.prompt) - 1 : -1].log_softmax(dim=-1))
    return found


def test_it_is_the_mean_kl_per_token_from_the_step_before_to_now(workshop: Workshop) -> None:
    """Brute force in float64 on the three anchors of the second step, tolerance 1e-4 of it."""
    context = workshop.context(past=workshop.past())
    recipe = assert_quiet(context, lambda one: build(SETTINGS, one))
    path = path_of(recipe)
    assert float(value(path, context)) == 0.0
    rows = find_anchors(context)[3:6]
    before = distributions(context.model, rows)
    path.before_step(context.model, [])
    with torch.no_grad():
        for one in context.model.parameters():
            one.mul_(1.1)
    now = distributions(context.model, rows)
    expected = sum(float((old.exp() * (old - new)).sum()) for old, new in zip(before, now, strict=True)) / len(now)
    assert expected > 1e-2
    assert float(value(path, context).detach()) == pytest.approx(2.0 * expected, rel=1e-4)


def test_moves_settle_at_the_step_that_weighs_gain_against_change_of_outputs() -> None:
    """The docstring's claim on a softmax of 5 logits, a linear loss, plain gradient descent: brute force
    u = −(1/η + w·G)⁻¹ g with G = diag p − p pᵀ at the last weights, tolerance 2 % of ‖u‖ (G changes along the path).
    """
    rate, weight = 0.1, 20.0
    gradient = torch.tensor([0.03, -0.01, 0.02, -0.05, 0.01], dtype=torch.float64)
    logits = torch.zeros(5, dtype=torch.float64)
    before = logits
    for _ in range(60):
        now = logits.clone().requires_grad_()
        divergence = (before.softmax(0) * (before.log_softmax(0) - now.log_softmax(0))).sum()
        (weight * divergence).backward()  # type: ignore[no-untyped-call]
        assert now.grad is not None
        before, logits = logits, logits - rate * (gradient + now.grad)
    p = logits.softmax(0)
    metric = torch.diag(p) - torch.outer(p, p)
    expected = -torch.linalg.solve(torch.eye(5, dtype=torch.float64) / rate + weight * metric, gradient)
    assert float((logits - before - expected).norm() / expected.norm()) < 0.02
    assert float((logits - before + rate * gradient).norm() / expected.norm()) > 0.1


def test_it_slows_the_change_of_outputs_and_resumes_exactly(workshop: Workshop, tmp_path: Path) -> None:
    past = workshop.past()

    def context() -> Context:
        return workshop.context(past=past)

    def drift(model: Any, rows: list[Encoded], start: list[Tensor]) -> float:
        return sum(
            float((old.exp() * (old - new)).sum()) for old, new in zip(start, distributions(model, rows), strict=True)
        )

    settings = InvariantPath(weight=20.0, rows=3)
    (whole, recipe), (_, resumed) = assert_exact_resume(context, lambda one: build(settings, one), tmp_path)
    found: Any = recipe.finish["invariant_path"](whole.model, tmp_path)
    assert found["path_length"] > 0
    assert found == {"anchors": 12, "path_length": found["path_length"]}
    assert found == resumed.finish["invariant_path"](whole.model, tmp_path)
    plain = context()
    rows = find_anchors(plain)
    start = distributions(plain.model, rows)
    train_steps(plain, Recipe())
    assert drift(whole.model, rows, start) < drift(plain.model, rows, start)


def test_dropout_is_off_and_modes_and_torchs_generator_are_left_alone(workshop: Workshop) -> None:
    context = workshop.context(past=workshop.past())
    add_dropout(context.model)
    path = path_of(build(SETTINGS, context))
    model = context.model.train()
    random = torch.get_rng_state()
    path.before_step(model, [])
    assert abs(float(value(path, context).detach())) < 1e-6
    assert torch.equal(random, torch.get_rng_state())
    assert all(module.training for module in model.modules())


def test_weight_0_changes_no_bit(workshop: Workshop) -> None:
    plain, zero = workshop.context(), workshop.context(past=workshop.past())
    train_steps(plain, Recipe())
    train_steps(zero, build(InvariantPath(weight=0.0, rows=3), zero))
    assert same(weights(plain.model), weights(zero.model))


def test_anchors_come_before_rows_of_earlier_tasks(workshop: Workshop) -> None:
    past = workshop.past(tasks=2)
    first, second = past.tasks
    both = Past(tasks=(first,), anchors=second.examples)
    assert {one.row for one in find_anchors(workshop.context(past=both))} == {one.row for one in second.examples}
    assert len(find_anchors(workshop.context(past=past))) == 24


def test_without_anchors_or_with_judged_ones_it_refuses(workshop: Workshop) -> None:
    with pytest.raises(ConfigInvalid, match="no anchors"):
        build(SETTINGS, workshop.context())
    past = workshop.past()
    with pytest.raises(LeakFound, match="1 of 12 anchors"):
        build(SETTINGS, workshop.context(past=past, judged=frozenset([past.tasks[0].examples[3].row])))
