"""A-GEM against hand-worked and brute-force gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.trainer_methods import (
    Workshop,
    add_dropout,
    assert_exact_resume,
    assert_quiet,
    make_workshop,
    nll,
    same,
    train_steps,
    weights,
)
from trainer.batches import collate
from trainer.errors import ConfigInvalid, LeakFound
from trainer.methods.projection import GradientProjection, build, project, remember
from trainer.methods.recipe import Context, Recipe
from trainer.methods.settings import Projection
from trainer.objective import Objective

SETTINGS = Projection(capacity=8, rows=4)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("projection"))


def parameter(*gradient: float) -> Tensor:
    made = nn.Parameter(torch.zeros(len(gradient)))
    made.grad = torch.tensor(gradient)
    return made


def hook_of(recipe: Recipe) -> GradientProjection:
    (hook,) = recipe.hooks
    assert isinstance(hook, GradientProjection)
    return hook


def test_the_part_against_the_reference_is_taken_out_over_all_parameters_together() -> None:
    """g = (1, 2 | −4), g_ref = (2, 0 | 1): ⟨g, g_ref⟩ = −2, ⟨g_ref, g_ref⟩ = 5, so g + 0.4·g_ref, worked by hand."""
    one, two = parameter(1.0, 2.0), parameter(-4.0)
    assert project([one, two], [torch.tensor([2.0, 0.0]), torch.tensor([1.0])])
    assert one.grad is not None
    assert two.grad is not None
    assert one.grad.tolist() == pytest.approx([1.8, 2.0], abs=1e-6)
    assert two.grad.tolist() == pytest.approx([-3.6], abs=1e-6)


def test_a_gradient_that_does_not_hurt_keeps_every_bit() -> None:
    for reference in ([1.0, 1.0], [0.0, 0.0]):
        one = parameter(3.0, -2.0)
        assert not project([one], [torch.tensor(reference)])
        assert one.grad is not None
        assert one.grad.tolist() == [3.0, -2.0]


def test_a_parameter_without_gradient_gets_its_share() -> None:
    one, two = parameter(-1.0), nn.Parameter(torch.zeros(1))
    assert project([one, two], [torch.tensor([1.0]), torch.tensor([1.0])])
    assert one.grad is not None
    assert two.grad is not None
    assert (float(one.grad), float(two.grad)) == (-0.5, 0.5)


def test_the_reference_is_the_mean_loss_of_all_drawn_rows_however_they_are_batched(workshop: Workshop) -> None:
    """Every remembered row is drawn; expected: one backward pass of the objective on all of them, tolerance 1e-6."""
    past = workshop.past(rows=6)
    for batch_tokens in (16, 4096):
        context = workshop.context(past=past, batch_tokens=batch_tokens)
        model = context.model
        parameters = [one for one in model.parameters() if one.requires_grad]
        hook = hook_of(build(Projection(capacity=6, rows=6), context))
        for one in parameters:
            one.grad = torch.full_like(one, 7.0)
        found = hook._reference_gradient(model, parameters)
        assert all(bool((one.grad == 7.0).all()) for one in parameters if one.grad is not None)
        model.zero_grad()
        Objective()(model, collate(past.tasks[0].examples, context.loaded.pad_token)).total.backward()  # type: ignore[no-untyped-call]
        for one, reference in zip(parameters, found, strict=True):
            assert one.grad is not None
            assert torch.allclose(one.grad, reference, atol=1e-6)


def test_a_small_step_against_the_old_task_no_longer_raises_its_loss(workshop: Workshop, tmp_path: Path) -> None:
    """The new rows ask for the opposite of the old ones. Plain gradient descent, the whole memory as reference: the
    projected step raises the old loss by less than a twentieth of what the free step does (second order).
    """
    old = workshop.past(rows=6)
    opposite = tuple(old.tasks[0].examples)
    rises = []
    for projecting in (False, True):
        context = workshop.context(past=old)
        model = context.model
        recipe = build(Projection(capacity=6, rows=6), context) if projecting else Recipe()
        batch = collate(opposite, context.loaded.pad_token)
        before = nll(context, opposite)
        (-Objective()(model, batch).total).backward()  # type: ignore[no-untyped-call]
        for hook in recipe.hooks:
            hook.before_step(model, [batch])
        torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=1e-3).step()
        rises.append(nll(context, opposite) - before)
    assert rises[0] > 0
    assert abs(rises[1]) < 0.05 * rises[0]


def test_the_hook_leaves_modes_and_random_state_and_finish_counts_the_projected_steps(
    workshop: Workshop, tmp_path: Path
) -> None:
    context = workshop.context(past=workshop.past(tasks=2))
    add_dropout(context.model)
    recipe = assert_quiet(context, lambda one: build(SETTINGS, one))
    model = context.model.train()
    counted = 0
    for sign in (1.0, -1.0, 1.0):
        parameters = [one for one in model.parameters() if one.requires_grad]
        hook = hook_of(recipe)
        hook._steps += 1  # the gradient of the step to come
        reference = hook._reference_gradient(model, parameters)
        hook._steps -= 1
        for one, gradient in zip(parameters, reference, strict=True):
            one.grad = sign * gradient
        random = torch.get_rng_state()
        hook.before_step(model, [])
        assert torch.equal(random, torch.get_rng_state())
        assert all(module.training for module in model.modules())
        counted += sign < 0
    assert recipe.finish["projection"](model, tmp_path) == {"steps": 3, "projected": counted, "remembered": 8}


def test_every_step_draws_its_rows_anew(workshop: Workshop) -> None:
    context = workshop.context(past=workshop.past())
    hook = hook_of(build(Projection(capacity=12, rows=2), context))
    parameters = [one for one in context.model.parameters() if one.requires_grad]
    found = []
    for _ in range(4):
        hook.before_step(context.model, [])
        found.append(
            float(torch.cat([one.flatten() for one in hook._reference_gradient(context.model, parameters)]).sum())
        )
    assert len(set(found)) > 1


def test_it_changes_a_run_and_resumes_exactly(workshop: Workshop, tmp_path: Path) -> None:
    past = workshop.past(tasks=2)

    def context() -> Context:
        return workshop.context(past=past)

    (whole, recipe), (_, resumed) = assert_exact_resume(context, lambda one: build(SETTINGS, one), tmp_path)
    plain = context()
    train_steps(plain, Recipe())
    found: Any = recipe.finish["projection"](whole.model, tmp_path)
    assert found["projected"] > 0
    assert not same(weights(plain.model), weights(whole.model))
    assert dict(hook_of(recipe).state()) == dict(hook_of(resumed).state())


@pytest.mark.parametrize("tasks", range(1, 6))
def test_every_task_is_remembered_by_its_quota(workshop: Workshop, tasks: int) -> None:
    """Capacity 7 over tasks of 4 rows: ⌊7/tasks⌋, one more for the first 7 mod tasks, at most 4."""
    past = workshop.past(rows=4, tasks=tasks)
    memory = [one.row for one in remember(7, workshop.context(past=past))]
    counts = [sum(row in {one.row for one in task.examples} for row in memory) for task in past.tasks]
    assert counts == [min(4, 7 // tasks + (number < 7 % tasks)) for number in range(tasks)]


def test_rows_that_an_evaluation_reads_are_refused(workshop: Workshop) -> None:
    past = workshop.past()
    context = workshop.context(past=past, judged=frozenset([past.tasks[0].examples[0].row]))
    with pytest.raises(LeakFound, match="1 of 12 remembered rows"):
        build(Projection(capacity=12, rows=4), context)


def test_without_an_earlier_task_there_is_nothing_to_remember(workshop: Workshop) -> None:
    with pytest.raises(ConfigInvalid, match="no rows of an earlier task"):
        build(SETTINGS, workshop.context())
