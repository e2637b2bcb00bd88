"""EWC with a budget: the weight follows the KL that is measured, never the price."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer_ewc import ewc, fresh, moved
from tests.trainer_methods import Workshop, assert_exact_resume, make_workshop, train_steps
from trainer.distillation.drift import Drift
from trainer.errors import ConfigInvalid
from trainer.methods.ewc import Budget
from trainer.methods.recipe import Context, Recipe


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("ewc"))


def test_drift_is_exactly_0_at_the_start_and_the_mean_kl_elsewhere(workshop: Workshop) -> None:
    # Expected: Σ p (log p − log q) per supervised position, one row at a time without padding, in float64.
    context = workshop.context()
    rows = workshop.past().tasks[0].examples
    drift = Drift(context.model, rows, context.loaded.pad_token, 64)
    assert drift.measure(context.model) == 0.0
    before = log_probabilities(context, rows)
    moved(context)
    after = log_probabilities(context, rows)
    expected = float((before.exp() * (before - after)).sum(-1).mean())
    assert drift.measure(context.model) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def log_probabilities(context: Context, rows: Any) -> Tensor:
    found = []
    for row in rows:
        logits = context.model(input_ids=torch.tensor([[*row.prompt, *row.completion]])).logits[0].double()
        found.append(logits[len(row.prompt) - 1 : -1].log_softmax(-1))
    return torch.cat(found)


def with_anchors(workshop: Workshop, folder: Path) -> Context:
    context = fresh(workshop, folder)
    return replace(context, past=replace(context.past, anchors=context.past.tasks[0].examples))


def test_a_budget_holds_the_measured_kl(workshop: Workshop, tmp_path: Path) -> None:
    # Free, the run drifts far over 0.05 nats per token; with the budget it ends within the controller's band of it.
    free, held = with_anchors(workshop, tmp_path), with_anchors(workshop, tmp_path)
    drift = Drift(held.model, held.past.anchors, held.loaded.pad_token, 4096)
    train_steps(free, Recipe(), 50)
    recipe = ewc(budget=0.05)(held)
    train_steps(held, recipe, 50)
    assert drift.measure(free.model) > 0.2
    assert drift.measure(held.model) < 0.1


def test_a_budget_doubles_and_halves_the_weight_within_bounds(workshop: Workshop, tmp_path: Path) -> None:
    # PPO's rule: twice above 1.5 budgets, half under ⅔ of one; never under a thousandth of the start.
    [budget] = ewc(budget=0.1)(context := with_anchors(workshop, tmp_path)).hooks
    assert isinstance(budget, Budget)
    weight = context.past.tasks[0].supervised / context.supervised
    assert [budget.adapted(kl) / weight for kl in (0.2, 0.16, 0.14, 0.1, 0.07, 0.06)] == [2, 2, 1, 1, 1, 0.5]
    for _ in range(55):
        budget.after_step(context.model)
    assert budget.state()["weight"] == pytest.approx(weight * 1e-3)


def test_a_budget_resumes_exactly(workshop: Workshop, tmp_path: Path) -> None:
    assert_exact_resume(lambda: with_anchors(workshop, tmp_path / "cache"), ewc(10.0, budget=1e-4), tmp_path / "states")


@pytest.mark.parametrize("settings", [{"weight": 0.0}, {}])
def test_a_budget_without_anchors_or_weight_is_refused(
    workshop: Workshop, tmp_path: Path, settings: dict[str, float]
) -> None:
    context = with_anchors(workshop, tmp_path) if settings else fresh(workshop, tmp_path)
    with pytest.raises(ConfigInvalid, match="a budget is kept by measuring on anchors"):
        ewc(budget=0.1, **settings)(context)
