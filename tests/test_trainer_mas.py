"""Memory aware synapses on ΔW against brute force, row by row, and the penalty made of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.trainer_methods import Workshop, assert_quiet, make_workshop, same, train_steps, weights
from trainer.batches import collate
from trainer.errors import ConfigInvalid
from trainer.fisher.importance import Diagonal, Importance, mean_entry
from trainer.lora import lora_layers, snapshot
from trainer.methods.mas import build, measure_sensitivity, scaled_to_mean
from trainer.methods.quadratic import QuadraticPenalty
from trainer.methods.recipe import Context, Recipe
from trainer.methods.settings import MemoryAware

SETTINGS = MemoryAware(weight=0.5, sequences=8)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("mas"))


def values(importance: Importance) -> dict[str, torch.Tensor]:
    return {name: one.values for name, one in importance.layers.items() if isinstance(one, Diagonal)}


def fresh(workshop: Workshop, tmp_path: Path) -> Context:
    """A context whose cache nobody has filled."""
    return workshop.context(past=workshop.past(), cache=tmp_path)


def measured(context: Context, batch_tokens: int = 512) -> Importance:
    rows = context.past.tasks[0].examples
    return measure_sensitivity(context.model, rows, context.loaded.pad_token, batch_tokens)


def test_it_is_the_mean_absolute_gradient_of_each_sequences_squared_logits(workshop: Workshop, tmp_path: Path) -> None:
    """Brute force: ΔW merged into the base, one row at a time without padding, autograd by the dense weight; 1e-4."""
    context = fresh(workshop, tmp_path)
    rows = context.past.tasks[0].examples
    found = values(measured(context))
    layers = lora_layers(context.model)
    for layer in layers:
        layer.module.base_layer.weight.data += layer.delta.dense.detach()
    dense = [layer.module.base_layer.weight.requires_grad_() for layer in layers]
    expected = [torch.zeros_like(one) for one in dense]
    with context.model.disable_adapter():
        for row in rows:
            logits = context.model(input_ids=torch.tensor([[*row.prompt, *row.completion]])).logits[0]
            length = logits[len(row.prompt) - 1 : -1].square().sum()
            for sums, gradient in zip(expected, torch.autograd.grad(length, dense), strict=True):
                sums += gradient.abs()
    tokens = sum(row.supervised for row in rows)
    for layer, sums in zip(layers, expected, strict=True):
        assert torch.allclose(found[layer.name], sums / tokens, rtol=1e-3, atol=1e-4 * float(sums.max()) / tokens)


def test_batching_changes_nothing_but_rounding(workshop: Workshop, tmp_path: Path) -> None:
    context = fresh(workshop, tmp_path)
    alone, together = values(measured(context, 1)), values(measured(context, 4096))
    for name, one in alone.items():
        assert torch.allclose(one, together[name], rtol=1e-3, atol=1e-5 * float(one.max()))


def test_its_mean_is_1_so_that_equal_importance_is_half_the_squared_move(workshop: Workshop, tmp_path: Path) -> None:
    scaled = scaled_to_mean(measured(fresh(workshop, tmp_path)))
    assert float(mean_entry(scaled)) == pytest.approx(1.0, abs=1e-5)
    entries = sum(one.numel() for one in values(scaled).values())
    assert sum(float(one.sum()) for one in values(scaled).values()) == pytest.approx(entries, rel=1e-5)


@pytest.mark.parametrize("learned", [True, False], ids=["from an adapter", "from the base"])
def test_the_penalty_is_the_weighted_square_around_the_start(workshop: Workshop, tmp_path: Path, learned: bool) -> None:
    """λ·T_old/T_new·½ Σ F∘D∘D by hand after training; T_old are the tokens of the whole task, T_new of the run's, but
    T_old := T_new where the base is the reference.
    """
    context = fresh(workshop, tmp_path)
    context = replace(context, past=replace(context.past, start=tmp_path if learned else None))
    recipe = assert_quiet(context, lambda one: build(MemoryAware(weight=0.5, sequences=256), one))
    scaled = values(scaled_to_mean(measured(context)))
    start = snapshot(context.model)
    train_steps(context, recipe)
    now = snapshot(context.model)
    by_hand = sum(0.5 * float((one * (now[name].dense - start[name].dense) ** 2).sum()) for name, one in scaled.items())
    share = context.past.tasks[0].supervised / context.supervised if learned else 1.0
    assert not learned or share != 1.0
    batch = collate(context.examples[:2], context.loaded.pad_token)
    penalty = float(recipe.penalties[0](context.model, batch, torch.zeros(())).detach())
    assert penalty == pytest.approx(0.5 * share * by_hand, rel=1e-3)
    found: Any = recipe.finish["mas"](context.model, tmp_path)
    assert found["omega"] == pytest.approx(by_hand, rel=1e-3)
    assert found["sequences"] == 12


def test_a_resumed_run_measures_nothing_again(workshop: Workshop, tmp_path: Path) -> None:
    context = fresh(workshop, tmp_path)
    context = replace(context, past=replace(context.past, start=tmp_path))
    first = build(SETTINGS, context).penalties[0]
    train_steps(context, Recipe(), 2)
    second = build(SETTINGS, context).penalties[0]
    assert isinstance(first, QuadraticPenalty)
    assert isinstance(second, QuadraticPenalty)
    assert first.importance.sequences == 8
    assert first.importance.tokens == context.past.tasks[0].supervised  # of the whole task, not of the rows read
    assert same(values(first.importance), values(second.importance))


def test_it_holds_the_run_near_its_start(workshop: Workshop, tmp_path: Path) -> None:
    lengths = []
    for weight in (0.0, 1e3):
        context = fresh(workshop, tmp_path)
        importance = scaled_to_mean(measured(context))
        start = snapshot(context.model)
        train_steps(context, build(MemoryAware(weight=weight, sequences=8), context))
        now = snapshot(context.model)
        lengths.append(float(importance.omega({name: now[name].minus(start[name]) for name in start})))
    assert lengths[1] < 0.5 * lengths[0]


def test_weight_0_changes_no_bit(workshop: Workshop, tmp_path: Path) -> None:
    plain, zero = workshop.context(), fresh(workshop, tmp_path)
    train_steps(plain, Recipe())
    train_steps(zero, build(MemoryAware(weight=0.0, sequences=8), zero))
    assert same(weights(plain.model), weights(zero.model))


def test_without_an_earlier_task_there_is_nothing_to_protect(workshop: Workshop) -> None:
    with pytest.raises(ConfigInvalid, match="no rows of an earlier task"):
        build(SETTINGS, workshop.context())
