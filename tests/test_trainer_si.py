"""Synaptic intelligence on ΔW: the path's gain against exact quadratics, autograd and a real run's loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from tests.trainer_methods import (
    Workshop,
    assert_exact_resume,
    assert_quiet,
    make_workshop,
    nll,
    same,
    train_steps,
    weights,
)
from trainer.batches import collate
from trainer.fisher.folder import load_importance
from trainer.fisher.importance import Diagonal, Importance
from trainer.fisher.layer_gradients import listen
from trainer.loop import accumulate
from trainer.lora import Factors, lora_layers, snapshot
from trainer.machine import Machine
from trainer.methods.recipe import Context, Recipe
from trainer.methods.settings import SynapticIntelligence
from trainer.methods.si import PathImportance, build, path_importance
from trainer.objective import Objective
from trainer.past import Past

SETTINGS = SynapticIntelligence(weight=1.0, damping=1e-3)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("si"))


def path_of(recipe: Recipe) -> PathImportance:
    (hook,) = recipe.hooks
    assert isinstance(hook, PathImportance)
    return hook


def layer_values(importance: Importance) -> dict[str, Tensor]:
    found = {}
    for name, curvature in importance.layers.items():
        assert isinstance(curvature, Diagonal)
        found[name] = curvature.values
    return found


def total(state: Mapping[str, Any]) -> float:
    return sum(float(gains.double().sum()) for gains in state["gains"].values())


class Linear(nn.Module):
    """One layer, so that the loss ½·mean‖Wx − y‖² is quadratic in ΔW."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def test_on_a_quadratic_loss_the_gain_is_its_fall_up_to_the_known_second_order_term(workshop: Workshop) -> None:
    """L(W + u) = L(W) + ⟨G, u⟩ + ½·mean‖u x‖², so Σω = fall + Σ ½·mean‖u_n x‖² exactly; float32, 1e-4 of the fall.
    With short steps that term is under 5 % of the fall, so Σω alone tells the fall to 5 %.
    """
    torch.manual_seed(0)
    model: Any = get_peft_model(Linear(), LoraConfig(r=2, lora_alpha=6, target_modules=["layer"]))
    nn.init.normal_(lora_layers(model)[0].b, std=0.3)
    x, y = torch.randn(50, 6), torch.randn(50, 4)
    path = PathImportance(replace(workshop.context(), model=model), 1e-3, None)
    optimizer = torch.optim.SGD([one for one in model.parameters() if one.requires_grad], lr=0.01)

    def loss() -> Tensor:
        found: Tensor = 0.5 * (model(x) - y).square().sum(dim=1).mean()
        return found

    first, second_order = float(loss().detach()), 0.0
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()  # type: ignore[no-untyped-call]
        path.before_step(model, [])
        before = snapshot(model)["layer"].dense
        optimizer.step()
        path.after_step(model)
        move = snapshot(model)["layer"].dense - before
        second_order += float(0.5 * (x @ move.T).square().sum(dim=1).mean())
    fall = first - float(loss().detach())
    assert fall > 0.3
    assert total(path.state()) == pytest.approx(fall + second_order, abs=1e-4 * fall)
    assert total(path.state()) == pytest.approx(fall, rel=0.05)


def test_the_travelled_path_is_priced_at_what_it_earned() -> None:
    """½⟨F, Δ∘Δ⟩ = Σ max(ω, 0)·Δ²/(Δ² + ξ); Δ = (1, 2, 0, 1), ω = (3, 1, 5, −1), mean(Δ²) = 1.5, damping 0.1:
    3/1.15 + 4/4.15 by hand, to 1e-6; with no damping 3 + 1.
    """
    gains = {"layer": torch.tensor([[3.0, 1.0], [5.0, -1.0]])}
    moves = {"layer": Factors(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.eye(2))}
    assert float(path_importance(gains, moves, 0.1, 10).omega(moves)) == pytest.approx(3 / 1.15 + 4 / 4.15, abs=1e-6)
    assert float(path_importance(gains, moves, 1e-9, 10).omega(moves)) == pytest.approx(4.0, abs=1e-5)


def test_an_adapter_that_did_not_move_has_no_importance() -> None:
    still = {"layer": Factors(torch.zeros(2, 1), torch.ones(1, 2))}
    found = path_importance({"layer": torch.ones(2, 2)}, still, 0.1, 1)
    assert not layer_values(found)["layer"].any()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_the_gradient_is_that_of_the_dense_layer_whatever_the_split(workshop: Workshop, accumulation: int) -> None:
    """Brute force: the same loss with one dense ΔW per layer as parameter, by autograd; tolerance 1e-6."""
    context = workshop.context()
    model, layers = context.model, lora_layers(context.model)
    gradients = {layer.name: torch.zeros(layer.delta.dense.shape) for layer in layers}

    def add(name: str, x: Tensor, delta: Tensor) -> None:
        gradients[name] += delta.flatten(0, -2).T @ x.flatten(0, -2)

    handles = listen(layers, add)
    examples = list(context.examples[:6])
    parts = [collate(examples[number::accumulation], context.loaded.pad_token) for number in range(accumulation)]
    accumulate(model, parts, Objective())
    for handle in handles:
        handle.remove()
    merged = {layer.name: layer.module.base_layer.weight for layer in layers}
    for layer in layers:
        merged[layer.name].data += layer.delta.dense.detach()
        merged[layer.name].requires_grad_()
    with model.disable_adapter():
        Objective()(model, collate(examples, context.loaded.pad_token)).total.backward()  # type: ignore[no-untyped-call]
    for name, dense in merged.items():
        assert dense.grad is not None
        assert torch.allclose(dense.grad, gradients[name], atol=1e-6), name


def test_along_a_real_run_the_gain_is_the_fall_of_the_loss(workshop: Workshop) -> None:
    """The same rows at every step, plain gradient descent with short steps: Σω equals the fall within 5 %."""
    context = workshop.context(batch_tokens=4096)
    recipe = assert_quiet(context, lambda one: build(SETTINGS, one))
    before = nll(context, context.examples)
    sgd = torch.optim.SGD([one for one in context.model.parameters() if one.requires_grad])
    train_steps(context, recipe, 12, optimizer=sgd, accumulation=1)
    fall = before - nll(context, context.examples)
    assert fall > 0.01
    assert total(path_of(recipe).state()) == pytest.approx(fall, rel=0.05)


def test_the_penalty_and_passes_in_evaluation_mode_are_not_in_the_gradient(workshop: Workshop, tmp_path: Path) -> None:
    """With a huge penalty and one more pass in evaluation mode G stays what the task alone gives, bit for bit."""
    found = []
    for weight in (0.0, 1e3):
        context, recipe = second_stage(workshop, tmp_path / str(weight), weight)
        with torch.no_grad():
            for layer in lora_layers(context.model):
                layer.b.add_(0.01)
        batch = collate(context.examples, context.loaded.pad_token)
        context.model.train()
        accumulate(context.model, [batch], Objective(recipe.penalties))
        if weight:
            context.model.eval()
            Objective()(context.model, batch).total.backward()  # type: ignore[no-untyped-call]
        found.append({name: one.clone() for name, one in path_of(recipe)._gradients.items()})
    assert same(*found)
    assert all(bool(one.any()) for one in found[0].values())


def test_a_loss_scaled_for_float16_earns_what_the_loss_itself_earns(workshop: Workshop) -> None:
    """Scale 1024, a power of two: the gains of every entry agree to 1e-6 of the largest."""
    gains = []
    for machine in (Machine(), Machine(scaler=torch.amp.GradScaler("cpu", init_scale=1024.0))):
        context = workshop.context(machine=machine)
        recipe = build(SETTINGS, context)
        train_steps(context, recipe, 2)
        gains.append(path_of(recipe).state()["gains"])
    for name, expected in gains[0].items():
        assert torch.allclose(gains[1][name], expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def first_stage(workshop: Workshop, folder: Path) -> tuple[Context, Path, Any]:
    """Train a first task; the run's folder of what methods left."""
    context = workshop.context()
    recipe = build(SETTINGS, context)
    assert not recipe.penalties
    train_steps(context, recipe)
    (folder / "methods" / "si").mkdir(parents=True)
    return context, folder / "methods", recipe.finish["si"](context.model, folder / "methods" / "si")


def second_stage(workshop: Workshop, folder: Path, weight: float) -> tuple[Context, Recipe]:
    before, left, _ = first_stage(workshop, folder)
    context = workshop.context(past=Past(start=folder, left=left))
    for name, one in context.model.named_parameters():
        if one.requires_grad:
            one.data.copy_(weights(before.model)[name])
    return context, build(replace_weight(weight), context)


def replace_weight(weight: float) -> SynapticIntelligence:
    return SynapticIntelligence(weight=weight, damping=1e-3)


def test_a_stage_protects_what_the_one_before_left_and_adds_its_own(workshop: Workshop, tmp_path: Path) -> None:
    """The penalty by hand: λ·T_old/T_new·½ Σ F∘D∘D after a known move; then F = (T₁F₁ + T₂F₂)/(T₁ + T₂) is left."""
    context, recipe = second_stage(workshop, tmp_path, 3.0)
    left = load_importance(tmp_path / "methods" / "si" / "importance")
    start = snapshot(context.model)
    batch = collate(context.examples[:2], context.loaded.pad_token)
    assert float(recipe.penalties[0](context.model, batch, torch.zeros(())).detach()) < 1e-9
    train_steps(context, recipe)
    now = snapshot(context.model)
    moved = {name: now[name].dense - start[name].dense for name in start}
    by_hand = sum(0.5 * float((one * moved[name].square()).sum()) for name, one in layer_values(left).items())
    assert left.tokens == context.supervised
    penalty = float(recipe.penalties[0](context.model, batch, torch.zeros(())).detach())
    assert penalty == pytest.approx(3.0 * by_hand, rel=1e-4)
    gains = {name: one.clone() for name, one in path_of(recipe).state()["gains"].items()}
    moves = {name: now[name].minus(start[name]) for name in start}
    own = path_importance(gains, moves, 1e-3, context.supervised)
    (tmp_path / "second").mkdir()
    recipe.finish["si"](context.model, tmp_path / "second")
    both = load_importance(tmp_path / "second" / "importance")
    assert both.tokens == 2 * context.supervised
    for name, found in layer_values(both).items():
        expected = (layer_values(left)[name] + layer_values(own)[name]) / 2
        assert torch.allclose(found, expected, rtol=1e-5)


def test_the_penalty_holds_the_second_stage_near_the_first(workshop: Workshop, tmp_path: Path) -> None:
    lengths = []
    for weight in (0.0, 1e4):
        context, recipe = second_stage(workshop, tmp_path / str(weight), weight)
        start = snapshot(context.model)
        train_steps(context, recipe)
        now = snapshot(context.model)
        left = load_importance(tmp_path / str(weight) / "methods" / "si" / "importance")
        lengths.append(float(left.omega({name: now[name].minus(start[name]) for name in start})))
    assert lengths[1] < 0.5 * lengths[0]


def test_weight_0_changes_no_bit_and_still_leaves_the_path(workshop: Workshop, tmp_path: Path) -> None:
    plain, zero = workshop.context(), workshop.context()
    train_steps(plain, Recipe())
    recipe = build(replace_weight(0.0), zero)
    train_steps(zero, recipe)
    assert same(weights(plain.model), weights(zero.model))
    found: Any = recipe.finish["si"](zero.model, tmp_path)
    assert found["gain"] > 0
    assert found["lost"] <= 0
    assert found["gain"] - found["lost"] >= found["priced"] > 0


def test_a_resumed_run_leaves_the_same_importance_bit_for_bit(workshop: Workshop, tmp_path: Path) -> None:
    (whole, one), (second, two) = assert_exact_resume(
        workshop.context, lambda context: build(SETTINGS, context), tmp_path / "states"
    )
    for number, (context, recipe) in enumerate(((whole, one), (second, two))):
        recipe.finish["si"](context.model, tmp_path / str(number))
    first, again = (layer_values(load_importance(tmp_path / str(number) / "importance")) for number in range(2))
    assert same(first, again)


def test_after_finish_it_no_longer_listens(workshop: Workshop, tmp_path: Path) -> None:
    context = workshop.context()
    recipe = build(SETTINGS, context)
    recipe.finish["si"](context.model, tmp_path)
    context.model.train()
    accumulate(context.model, [collate(context.examples, context.loaded.pad_token)], Objective())
    assert not any(bool(one.any()) for one in path_of(recipe)._gradients.values())
