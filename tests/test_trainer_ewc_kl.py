"""What Ω is worth: the full quadratic form tends to the KL, its approximations stay what they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.trainer_methods import Workshop, make_workshop, train_steps
from trainer.batches import Batch, collate
from trainer.distillation.divergence import supervised_logits, token_kl
from trainer.distillation.teacher import frozen
from trainer.fisher.estimate import estimate_fisher
from trainer.fisher.importance import Kind
from trainer.lora import Factors, lora_layers, snapshot
from trainer.methods.recipe import Recipe
from trainer.objective import predict

KINDS: tuple[Kind, ...] = ("diagonal", "kron_diagonal", "kfac")
SEEDS = 8  # label draws, averaged
# Measured: random 1.06, 0.81, 0.70; learned 0.23, 0.18, 0.43. A factor of T, P, ½ or s gone wrong leaves them.
BANDS: Mapping[str, tuple[Mapping[Kind, float], Mapping[Kind, float]]] = {
    "random": (dict.fromkeys(KINDS, 0.5), dict.fromkeys(KINDS, 1.5)),
    "learned": (
        {"diagonal": 0.1, "kron_diagonal": 0.1, "kfac": 0.25},
        {"diagonal": 0.4, "kron_diagonal": 0.4, "kfac": 0.8},
    ),
}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("kl"))


def random_move(model: Any) -> dict[str, Factors]:
    """What a random move of A and B of every layer does to ΔW, to first order: rank 2r, s in `up`."""
    draw = torch.Generator().manual_seed(11)
    moves = {}
    for layer in lora_layers(model):
        a, b = (torch.randn(one.shape, generator=draw) * 0.1 for one in (layer.a, layer.b))
        delta = layer.delta.detached()
        moves[layer.name] = Factors(torch.cat([layer.scale * b, delta.up], 1), torch.cat([delta.down, a], 0))
    return moves


def learned_move(workshop: Workshop) -> dict[str, Factors]:
    """D of a short training on another task than the one whose KL is measured."""
    context = workshop.context()
    before = snapshot(context.model)
    train_steps(context, Recipe())
    return {layer.name: layer.delta.minus(before[layer.name]).detached() for layer in lora_layers(context.model)}


def shifted(model: Any, moves: dict[str, Factors], size: float) -> dict[str, Tensor]:
    """The base's weights with size · D added: the same function as an adapter that moved by it."""
    return {
        f"base_model.model.{layer.name}.base_layer.weight": (
            layer.module.base_layer.weight.detach() + size * moves[layer.name].dense
        )
        for layer in lora_layers(model)
    }


def exact_quadratic(model: Any, batch: Batch, moves: dict[str, Factors]) -> float:
    """½ vec(D)ᵀ F vec(D) over all layers at once: ½ the variance under p of the logits' directional derivative."""
    here = shifted(model, moves, 0.0)
    tangent = {name: one - here[name] for name, one in shifted(model, moves, 1.0).items()}

    def logits(weights: dict[str, Tensor]) -> Tensor:
        found: Tensor = functional_call(_Predict(model), {f"model.{name}": one for name, one in weights.items()}, batch)
        return found

    found = jvp(logits, (here,), (tangent,))
    value, change = found[0], found[1]
    p = value.softmax(-1)
    centred = change - (p * change).sum(-1, keepdim=True)
    return 0.5 * float((p * centred.square()).sum(-1).mean().detach())


class _Predict(torch.nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, batch: Batch) -> Tensor:
        return supervised_logits(predict(self.model, batch), batch)


def measured_kl(model: Any, rows: Any, pad_token: int, moves: dict[str, Factors], size: float) -> float:
    batch = collate(rows, pad_token)

    def said(size: float) -> Tensor:
        weights = {f"model.{name}": one for name, one in shifted(model, moves, size).items()}
        found: Tensor = functional_call(_Predict(model), weights, batch)
        return found

    with frozen(model):
        return float(token_kl(said(0.0), said(size)).mean())


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own forward mode calls it
@pytest.mark.parametrize("move", ["random", "learned"])
def test_the_full_quadratic_tends_to_the_kl_and_its_approximations_do_not(
    workshop: Workshop, record_property: Any, move: str
) -> None:
    """KL = ½ vec(D)ᵀ F vec(D) + O(|D|³): the ratio goes to 1 as the move shrinks, to 2 % at 3 % of the move (float32).
    The other shapes leave out how layers and positions act together. Their ratios to the same form are recorded and
    held in loose bands around what was measured: near 1 on a random move, several times low on a learned one.
    """
    low, high = BANDS[move]
    context = workshop.context()
    model, token = context.model.eval(), context.loaded.pad_token
    rows = workshop.past(8).tasks[0].examples
    moves = random_move(model) if move == "random" else learned_move(workshop)
    with sdpa_kernel(SDPBackend.MATH):
        quadratic = exact_quadratic(model, collate(rows, token), moves)
        gaps = [
            abs(size**2 * quadratic / measured_kl(model, rows, token, moves, size) - 1) for size in (0.3, 0.1, 0.03)
        ]
    for kind in KINDS:
        omegas = [
            float(estimate_fisher(model, rows, kind, seed=seed, pad_token=token).omega(moves)) for seed in range(SEEDS)
        ]
        ratio = sum(omegas) / SEEDS / quadratic
        record_property(f"omega_per_kl_{kind}", ratio)
        assert low[kind] < ratio < high[kind]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 0.02
