"""EWC on ΔW: closed forms, gauge invariance, the ends of λ in whole trainings, the budget, exact resume."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer_methods import Workshop, assert_exact_resume, assert_quiet, make_workshop, same, train_steps, weights
from trainer.batches import ShuffledBatches, collate
from trainer.drift import Drift
from trainer.errors import ConfigInvalid
from trainer.fisher import estimate_fisher
from trainer.importance import Diagonal, Importance, Kind, Kronecker, uniform
from trainer.loop import accumulate, train
from trainer.lora import Factors, lora_layers, snapshot
from trainer.methods.ewc import Budget
from trainer.methods.ewc import build as build_ewc
from trainer.methods.ewc_factors import FactorPenalty, factors_of
from trainer.methods.ewc_factors import build as build_factors
from trainer.methods.l2 import build as build_l2
from trainer.methods.online_ewc import build as build_online
from trainer.methods.quadratic import QuadraticPenalty, laplace_weight, starting_point
from trainer.methods.recipe import Context, Recipe
from trainer.methods.settings import L2, Ewc, EwcFactors, OnlineEwc
from trainer.objective import Objective
from trainer.past import Past
from trainer.schedule import Budget as StepBudget
from trainer.schedule import LearningRate

KINDS: tuple[Kind, ...] = ("diagonal", "kron_diagonal", "kfac", "uniform")
Build = Callable[[Context], Recipe]


def ewc(weight: float = 1.0, **settings: Any) -> Build:
    return lambda context: build_ewc(Ewc(weight=weight, sequences=6, **settings), context)


def online(weight: float = 1.0) -> Build:
    return lambda context: build_online(OnlineEwc.model_validate({"weight": weight, "sequences": 6}), context)


def factors(weight: float = 1.0) -> Build:
    return lambda context: build_factors(EwcFactors.model_validate({"weight": weight, "sequences": 6}), context)


def l2(weight: float = 1.0) -> Build:
    return lambda context: build_l2(L2.model_validate({"weight": weight, "sequences": 6}), context)


EVERY = {"ewc": ewc, "online_ewc": online, "ewc_factors": factors, "l2": l2}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("ewc"))


def fresh(workshop: Workshop, folder: Path, *, start: bool = True, **changes: Any) -> Context:
    """A run that starts from an adapter that learned one task, with its own cache."""
    past = replace(workshop.past(), start=folder if start else None)
    return workshop.context(past=past, cache=folder, **changes)


def measured(context: Context, kind: Kind) -> Importance:
    rows = context.past.tasks[0].examples[:6]
    if kind == "uniform":
        return uniform(estimate_fisher(context.model, rows, "diagonal"))
    return estimate_fisher(context.model, rows, kind)


def moved(context: Context, size: float = 0.1) -> None:
    draw = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for layer in lora_layers(context.model):
            for parameter in (layer.a, layer.b):
                parameter.add_(size * torch.randn(parameter.shape, generator=draw))


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


@pytest.mark.parametrize("name", EVERY)
def test_weight_0_is_bit_for_bit_a_run_without_the_method(workshop: Workshop, tmp_path: Path, name: str) -> None:
    plain, with_method = (fresh(workshop, tmp_path / which) for which in ("plain", "with"))
    plain_losses = train_steps(plain, Recipe())
    assert train_steps(with_method, EVERY[name](0.0)(with_method)) == plain_losses
    assert same(weights(plain.model), weights(with_method.model))


@pytest.mark.parametrize("name", EVERY)
def test_building_is_quiet_and_a_weight_above_0_acts(workshop: Workshop, tmp_path: Path, name: str) -> None:
    context, plain = fresh(workshop, tmp_path), fresh(workshop, tmp_path)
    recipe = assert_quiet(context, EVERY[name](100.0))
    train_steps(context, recipe)
    train_steps(plain, Recipe())
    assert not same(weights(plain.model), weights(context.model))


@pytest.mark.parametrize("name", ["ewc", "l2"])
def test_a_growing_weight_takes_the_run_back_to_its_reference(workshop: Workshop, tmp_path: Path, name: str) -> None:
    # In the limit nothing moves where F > 0. 40 steps of Adam that fade to 0; Ω falls with every λ, at the end to 1e-3
    # of the free run's.
    omegas = []
    for weight in (0.0, 1e2, 1e5):
        context = fresh(workshop, tmp_path)
        [penalty] = EVERY[name](weight)(context).penalties
        assert isinstance(penalty, QuadraticPenalty)
        train_to_rest(context, penalty)
        omegas.append(penalty.measure(context.model))
    assert omegas == sorted(omegas, reverse=True)
    assert omegas[-1] < 1e-3 * omegas[0]


def train_to_rest(context: Context, penalty: QuadraticPenalty) -> None:
    model, token = context.model, context.loaded.pad_token
    batches = ShuffledBatches(context.examples, batch_tokens=512, seed=0, pad_token=token)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    rate = LearningRate(0.01, "linear", 0.0)
    for _ in train(model, batches, Objective([penalty]), optimizer, budget=StepBudget(25), learning_rate=rate):
        pass


@pytest.mark.parametrize("name", EVERY)
def test_a_resumed_run_is_the_uninterrupted_one(workshop: Workshop, tmp_path: Path, name: str) -> None:
    assert_exact_resume(lambda: fresh(workshop, tmp_path / "cache"), EVERY[name](10.0), tmp_path / "states")


def test_a_resumed_run_does_not_measure_again(workshop: Workshop, tmp_path: Path) -> None:
    said: list[str] = []
    context = fresh(workshop, tmp_path, observer=Listener(said))
    ewc()(context)
    assert len(said) == 1
    ewc()(context)
    assert len(said) == 1


class Listener:
    stop_requested = False

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def say(self, text: str) -> None:
        self._said.append(text)

    def advance(self, what: str, done: float, total: float, note: str = "") -> None:
        """Nothing."""


def test_the_weight_is_laplaces(workshop: Workshop, tmp_path: Path) -> None:
    # T_old / T_new of unique supervised tokens, not of the six rows measured; 1 where the base is the reference.
    context = fresh(workshop, tmp_path / "one")
    [penalty] = ewc(2.0)(context).penalties
    assert isinstance(penalty, QuadraticPenalty)
    assert penalty.weight == 2.0 * context.past.tasks[0].supervised / context.supervised
    from_base = fresh(workshop, tmp_path / "two", start=False, effect=0.0)
    [penalty] = ewc(2.0)(from_base).penalties
    assert isinstance(penalty, QuadraticPenalty)
    assert penalty.weight == 2.0
    assert penalty.reference == {}
    assert laplace_weight(3.0, 10.0, 5.0) == 6.0


def test_a_fresh_adapter_is_the_base_and_adds_no_rank(workshop: Workshop, tmp_path: Path) -> None:
    assert starting_point(workshop.context(effect=0.0).model) == {}
    assert len(starting_point(workshop.context(effect=0.1).model)) == 14


def test_anchors_speak_for_the_base_where_there_is_no_past(workshop: Workshop, tmp_path: Path) -> None:
    anchors = workshop.past().tasks[0].examples
    context = workshop.context(past=Past(anchors=anchors), cache=tmp_path, effect=0.0)
    recipe = ewc()(context)
    moved(context)
    found = recipe.finish["ewc"](context.model, tmp_path)
    assert found["sequences"] == 6
    assert found["old_tokens"] == found["new_tokens"] == context.supervised


@pytest.mark.parametrize("name", ["ewc", "ewc_factors", "l2"])
def test_without_rows_to_protect_it_is_refused(workshop: Workshop, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"{name} needs rows to protect, found no past task and no anchors"):
        EVERY[name]()(workshop.context(cache=tmp_path))
    anchors = workshop.past().tasks[0].examples
    with pytest.raises(ConfigInvalid, match="found anchors and a start, but no past task"):
        EVERY[name]()(workshop.context(past=Past(anchors=anchors, start=tmp_path), cache=tmp_path))


@pytest.mark.parametrize("name", EVERY)
def test_the_report_has_the_price_beside_the_measured_kl(workshop: Workshop, tmp_path: Path, name: str) -> None:
    context = fresh(workshop, tmp_path)
    recipe = EVERY[name](3.0)(context)
    task = context.past.tasks[0]
    drift = Drift(context.model, task.examples, context.loaded.pad_token, 64)
    moved(context, 0.01)
    found = recipe.finish[name](context.model, tmp_path)
    [penalty] = recipe.penalties
    assert isinstance(penalty, QuadraticPenalty)
    assert found["sequences"] == 6
    assert (found["old_tokens"], found["new_tokens"]) == (task.supervised, context.supervised)
    assert found["weight"] == penalty.weight
    assert found["omega"] == penalty.measure(context.model) > 0
    assert found["measured_kl"] == pytest.approx(drift.measure(context.model), rel=1e-4)
    assert found["omega_per_kl"] == pytest.approx(found["omega"] / found["measured_kl"])  # type: ignore[operator]
    assert found["fisher_seconds"] > 0  # type: ignore[operator]


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


def test_the_factors_of_the_control_are_a_and_b_themselves(workshop: Workshop) -> None:
    context = workshop.context()
    for layer in lora_layers(context.model):
        held = factors_of(context.model)[layer.name]
        assert isinstance(held, Factors)
        assert torch.equal(held.up, layer.b)
        assert torch.equal(held.down, layer.a)
