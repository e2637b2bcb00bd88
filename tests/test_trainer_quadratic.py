"""The quadratic penalty on ΔW: its closed-form gradient, what it must not see, and what its control on A and B does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer_ewc import ewc, factors, fresh, moved
from tests.trainer_methods import Workshop, make_workshop
from trainer.batches import collate
from trainer.fisher.estimate import estimate_fisher
from trainer.fisher.importance import Diagonal, Importance, Kind, Kronecker, uniform
from trainer.loop import accumulate
from trainer.lora import Factors, lora_layers, snapshot
from trainer.methods.ewc_factors import FactorPenalty, factors_of
from trainer.methods.quadratic import QuadraticPenalty, starting_point
from trainer.methods.recipe import Context
from trainer.objective import Objective

KINDS: tuple[Kind, ...] = ("diagonal", "kron_diagonal", "kfac", "uniform")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("ewc"))


def measured(context: Context, kind: Kind) -> Importance:
    rows = context.past.tasks[0].examples[:6]
    if kind == "uniform":
        return uniform(estimate_fisher(context.model, rows, "diagonal"))
    return estimate_fisher(context.model, rows, kind)


def applied(curvature: Any, move: Tensor) -> Tensor:
    """F[D], (out, in): what ½ ⟨D, F[D]⟩ = Ω has as its gradient by D."""
    if isinstance(curvature, Diagonal):
        return curvature.values * move
    assert isinstance(curvature, Kronecker)
    return torch.stack([side(out, len(move)) @ move @ side(into, move.shape[1]) for out, into in curvature.terms]).sum(
        0
    )


def side(values: Tensor, size: int) -> Tensor:
    return values if values.dim() == 2 else torch.diag(values.expand(size))


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_the_closed_form(workshop: Workshop, tmp_path: Path, kind: Kind) -> None:
    # ∂Ω/∂B = s F[D] Aᵀ and ∂Ω/∂A = s Bᵀ F[D], with F[D] = F∘D for a diagonal, S·D·C for kfac; 1e-5 of the largest
    # entry, for float32. The value is ½ Σ ⟨D, F[D]⟩.
    context = fresh(workshop, tmp_path)
    importance, reference = measured(context, kind), snapshot(context.model)
    moved(context)
    omega = QuadraticPenalty("ewc", importance, reference, 1.0)(context.model, None, torch.zeros(()))  # type: ignore[arg-type]
    omega.backward()  # type: ignore[no-untyped-call]
    total = 0.0
    for layer in lora_layers(context.model):
        move = (layer.delta.dense - reference[layer.name].dense).detach()
        pulled = applied(importance.layers[layer.name], move)
        total += 0.5 * float((move * pulled).sum())
        expected = (layer.scale * layer.b.detach().T @ pulled, layer.scale * pulled @ layer.a.detach().T)
        for parameter, closed in zip((layer.a, layer.b), expected, strict=True):
            assert parameter.grad is not None
            assert float((parameter.grad - closed).abs().max() / closed.abs().max()) < 1e-5
    assert float(omega.detach()) == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_does_not_see_a_change_of_factors_that_leaves_the_product(
    workshop: Workshop, tmp_path: Path, kind: Kind
) -> None:
    # A → R·A, B → B·R⁻¹ with a random orthogonal R: the same function. Bound 1e-6 of Ω, float32 rounding.
    context = fresh(workshop, tmp_path)
    penalty = QuadraticPenalty("ewc", measured(context, kind), snapshot(context.model), 1.0)
    moved(context)
    before = penalty.measure(context.model)
    regauge(context)
    assert penalty.measure(context.model) == pytest.approx(before, rel=1e-6)


def test_the_control_on_a_and_b_charges_such_a_change(workshop: Workshop, tmp_path: Path) -> None:
    context = fresh(workshop, tmp_path)
    [penalty] = factors()(context).penalties
    assert isinstance(penalty, FactorPenalty)
    assert penalty.measure(context.model) == 0.0
    product = QuadraticPenalty("ewc", measured(context, "diagonal"), snapshot(context.model), 1.0)
    regauge(context)
    assert penalty.measure(context.model) > 1e4 * product.measure(context.model)


def regauge(context: Context) -> None:
    draw = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in lora_layers(context.model):
            turn, _ = torch.linalg.qr(torch.randn(len(layer.a), len(layer.a), generator=draw))
            layer.a.copy_(turn @ layer.a)
            layer.b.copy_(layer.b @ turn.T)


@pytest.mark.parametrize("kind", KINDS)
def test_the_penalty_does_not_see_alpha_over_rank_at_the_same_product(
    workshop: Workshop, tmp_path: Path, kind: Kind
) -> None:
    context = fresh(workshop, tmp_path)
    penalty = QuadraticPenalty("ewc", measured(context, kind), snapshot(context.model), 1.0)
    moved(context)
    before = penalty.measure(context.model)
    for layer in lora_layers(context.model):
        layer.module.scaling["default"] *= 3.0
        with torch.no_grad():
            layer.b.div_(3.0)
    assert penalty.measure(context.model) == pytest.approx(before, rel=1e-5)


def test_accumulation_counts_the_penalty_once(workshop: Workshop, tmp_path: Path) -> None:
    # Bound 1e-5 of the largest gradient: float32 sums in another order.
    context = fresh(workshop, tmp_path)
    [penalty] = ewc(100.0)(context).penalties
    moved(context)
    whole, parts = (gradients(context, penalty, size) for size in (24, 7))
    assert max(float((one - two).abs().max()) for one, two in zip(whole, parts, strict=True)) < 1e-5 * max(
        float(one.abs().max()) for one in whole
    )


def gradients(context: Context, penalty: Any, size: int) -> list[Tensor]:
    rows, token = context.examples, context.loaded.pad_token
    batches = [collate(rows[first : first + size], token) for first in range(0, len(rows), size)]
    context.model.zero_grad()
    accumulate(context.model, batches, Objective([penalty]))
    return [one.grad.clone() for one in context.model.parameters() if one.grad is not None]


def test_a_fresh_adapter_is_the_base_and_adds_no_rank(workshop: Workshop, tmp_path: Path) -> None:
    assert starting_point(workshop.context(effect=0.0).model) == {}
    assert len(starting_point(workshop.context(effect=0.1).model)) == 14


def test_the_factors_of_the_control_are_a_and_b_themselves(workshop: Workshop) -> None:
    context = workshop.context()
    for layer in lora_layers(context.model):
        held = factors_of(context.model)[layer.name]
        assert isinstance(held, Factors)
        assert torch.equal(held.up, layer.b)
        assert torch.equal(held.down, layer.a)
