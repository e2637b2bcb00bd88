"""The averaged weights against hand-worked numbers, and how they are put in and taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.trainer_methods import Workshop, assert_exact_resume, assert_quiet, make_workshop, same, train_steps, weights
from trainer.methods.ema import MovingAverage, build
from trainer.methods.recipe import Averaged, Recipe
from trainer.methods.settings import Ema

SETTINGS = Ema(decay=0.9)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("ema"))


def average_of(recipe: Recipe) -> MovingAverage:
    (hook,) = recipe.hooks
    assert isinstance(hook, MovingAverage)
    return hook


def test_the_average_is_that_of_adam_hand_worked() -> None:
    """decay 1/2, weights 0 (before any step), then 4, 8, 16: m = 10 + … worked by hand in the asserts, exact."""
    model = nn.Linear(1, 1, bias=False)
    average = MovingAverage(0.5)
    seen = []
    for value in (4.0, 8.0, 16.0):
        nn.init.constant_(model.weight, value)
        average.after_step(model)
        with average.averaged(model):
            seen.append(float(model.weight.detach()))
    assert seen[0] == 4.0  # the weights after the first step, not the start
    assert seen[1] == pytest.approx((0.5 * 0.5 * 4 + 0.5 * 8) / 0.75, rel=1e-6)
    assert seen[2] == pytest.approx((0.125 * 4 + 0.25 * 8 + 0.5 * 16) / 0.875, rel=1e-6)


def test_averaging_a_and_b_apart_misses_the_average_of_their_product_by_the_stated_sum() -> None:
    """The docstring's identity in float64, three iterates, tolerance 1e-12."""
    draw = torch.Generator().manual_seed(0)
    a = [torch.randn(2, 5, generator=draw, dtype=torch.float64) for _ in range(3)]
    b = [torch.randn(4, 2, generator=draw, dtype=torch.float64) for _ in range(3)]
    shares = [0.2, 0.3, 0.5]
    exact = torch.stack([c * one @ two for c, one, two in zip(shares, b, a, strict=True)]).sum(dim=0)
    mean_a, mean_b = (
        torch.stack([c * one for c, one in zip(shares, several, strict=True)]).sum(dim=0) for several in (a, b)
    )
    pairs = [(i, j) for i in range(3) for j in range(i)]
    missed = torch.stack([shares[i] * shares[j] * (b[i] - b[j]) @ (a[i] - a[j]) for i, j in pairs]).sum(dim=0)
    assert torch.allclose(exact - mean_b @ mean_a, missed, atol=1e-12)
    assert float(missed.norm()) > 0.1


def test_the_model_gets_its_own_weights_back_bit_for_bit_even_after_an_error(workshop: Workshop) -> None:
    context = workshop.context()
    recipe = build(SETTINGS, context)
    train_steps(context, recipe)
    own = weights(context.model)
    average = average_of(recipe)
    with average.averaged(context.model):
        inside = weights(context.model)
    assert not same(own, inside)
    assert same(own, weights(context.model))
    with pytest.raises(ZeroDivisionError), average.averaged(context.model):
        raise ZeroDivisionError
    assert same(own, weights(context.model))


def test_before_any_step_the_average_is_the_weights_themselves(workshop: Workshop) -> None:
    context = workshop.context()
    own = weights(context.model)
    with average_of(build(SETTINGS, context)).averaged(context.model):
        assert same(own, weights(context.model))


def test_training_does_not_feel_the_average(workshop: Workshop) -> None:
    plain, averaged = workshop.context(), workshop.context()
    train_steps(plain, Recipe())
    train_steps(averaged, assert_quiet(averaged, lambda context: build(SETTINGS, context)))
    assert same(weights(plain.model), weights(averaged.model))


def test_a_resumed_run_has_the_same_average_bit_for_bit(workshop: Workshop, tmp_path: Path) -> None:
    (whole, one), (second, two) = assert_exact_resume(
        workshop.context, lambda context: build(SETTINGS, context), tmp_path
    )
    with average_of(one).averaged(whole.model), average_of(two).averaged(second.model):
        assert same(weights(whole.model), weights(second.model))


def test_it_is_found_as_what_is_judged_and_says_how_far_it_lies(workshop: Workshop, tmp_path: Path) -> None:
    context = workshop.context()
    recipe = build(SETTINGS, context)
    train_steps(context, recipe)
    assert isinstance(recipe.hooks[0], Averaged)
    own = weights(context.model)
    with average_of(recipe).averaged(context.model):
        inside = weights(context.model)
    found: Any = recipe.finish["ema"](context.model, tmp_path)
    apart = torch.cat([(own[name] - inside[name]).flatten() for name in own]).norm()
    norm = torch.cat([one.flatten() for one in own.values()]).norm()
    assert found == {"steps": 6, "distance_from_latest": pytest.approx(float(apart / norm), rel=1e-5)}
