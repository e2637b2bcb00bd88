"""The Fisher of a two-layer attention model: against per-sequence gradients, and invariant to how it is read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.trainer_base import encoded, lora_model, make_trainable_base, varied_rows
from trainer.batches import IGNORED, Batch, collate
from trainer.data import Encoded
from trainer.fisher.estimate import FisherEstimate, choose_rows, estimate_fisher
from trainer.fisher.importance import Diagonal, Importance, Kind, Kronecker
from trainer.fisher.sums import SUMS, FactorSums
from trainer.lora import lora_layers
from trainer.model import LoadedBase

KINDS: tuple[Kind, ...] = ("diagonal", "kron_diagonal", "kfac")
TOLERANCE = 1e-5  # relative to the largest entry of a layer


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return make_trainable_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def adapted(base: Path) -> tuple[LoadedBase, Any]:
    return lora_model(base, effect=0.1)


def rows_of_one_length(count: int, prompt: int = 9, completion: int = 4) -> list[Encoded]:
    draw = random.Random(5)
    tokens = [[draw.randrange(1, 400) for _ in range(prompt + completion)] for _ in range(count)]
    return [Encoded(f"{row}", tuple(one[:prompt]), tuple(one[prompt:]), (), "") for row, one in enumerate(tokens)]


def tensors(importance: Importance) -> dict[str, tuple[Tensor, ...]]:
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, layer in importance.layers.items():
        if isinstance(layer, Diagonal):
            found[name] = (layer.values,)
        else:
            assert isinstance(layer, Kronecker)
            found[name] = layer.terms[0]
    return found


def gap(one: Importance, two: Importance) -> float:
    """The largest difference of an entry, relative to the largest entry of its layer."""
    first, second = tensors(one), tensors(two)
    assert first.keys() == second.keys()
    return max(
        float((a - b).abs().max() / b.abs().max())
        for name in first
        for a, b in zip(first[name], second[name], strict=True)
    )


def test_the_diagonal_is_the_mean_square_of_each_sequences_own_gradient(adapted: tuple[LoadedBase, Any]) -> None:
    # Expected: torch.func vmap(grad) of the summed −log p by the weights of the base's own layers.
    loaded, model = adapted
    rows = rows_of_one_length(6)
    weights = {name: one.detach() for name, one in model.named_parameters() if name.endswith("base_layer.weight")}

    def loss(changed: dict[str, Tensor], ids: Tensor) -> Tensor:
        logits = functional_call(model, changed, kwargs={"input_ids": ids[None], "use_cache": False}).logits[0]
        taken: Tensor = logits.log_softmax(-1)[8:-1].gather(-1, ids[9:, None])
        return -taken.sum()

    with sdpa_kernel(SDPBackend.MATH):
        gradients = vmap(grad(loss), in_dims=(None, 0))(weights, collate(rows, loaded.pad_token).input_ids)
        found = estimate_fisher(model, rows, "diagonal", labels="data")
    expected = {
        name.removeprefix("base_model.model.").removesuffix(".base_layer.weight"): one.detach().square().sum(0)
        / (6 * 4)
        for name, one in gradients.items()
    }
    assert found.layers.keys() == expected.keys()
    for name, (values,) in tensors(found).items():
        assert float((values - expected[name]).abs().max() / expected[name].max()) < TOLERANCE


def test_kfac_has_the_kron_diagonal_on_its_diagonals(adapted: tuple[LoadedBase, Any]) -> None:
    # By definition: diag(Σ δδᵀ) = Σ δ∘δ, and the same for x.
    _, model = adapted
    full, thin = (estimate_fisher(model, rows_of_one_length(6), kind) for kind in ("kfac", "kron_diagonal"))
    for name, (out, into) in tensors(full).items():
        f_out, f_in = tensors(thin)[name]
        assert torch.allclose(out.diagonal(), f_out, rtol=1e-4)
        assert torch.allclose(into.diagonal(), f_in, rtol=1e-4)


def test_the_fisher_of_a_is_0_where_b_is_0_while_that_of_the_product_is_not(base: Path) -> None:
    loaded, model = lora_model(base, effect=0.0)
    rows = encoded(loaded, varied_rows(6))
    product = estimate_fisher(model, rows, "diagonal")
    apart = estimate_fisher(model, rows, "diagonal", sums=FactorSums)
    for name, (values,) in tensors(product).items():
        assert float(values.sum()) > 0
        (of_a,), (of_b,) = tensors(apart)[f"{name}.A"], tensors(apart)[f"{name}.B"]
        assert not of_a.any()
        assert float(of_b.sum()) > 0


def test_the_fisher_of_the_factors_is_that_of_their_own_gradients(adapted: tuple[LoadedBase, Any]) -> None:
    # Expected: autograd's gradient of one sequence by A and B, squared.
    loaded, model = adapted
    row = encoded(loaded, varied_rows(3))[2:]
    found = tensors(estimate_fisher(model, row, "diagonal", labels="data", sums=FactorSums))
    batch = collate(row, loaded.pad_token)
    loss = model(input_ids=batch.input_ids, labels=batch.labels).loss * batch.supervised
    for layer in lora_layers(model):
        for side, parameter in (("A", layer.a), ("B", layer.b)):
            (gradient,) = torch.autograd.grad(loss, parameter, retain_graph=True)
            expected = gradient.square() / batch.supervised
            assert float((found[f"{layer.name}.{side}"][0] - expected).abs().max() / expected.max()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_batch_size_and_order_change_nothing(adapted: tuple[LoadedBase, Any], kind: Kind) -> None:
    # Bound: float32 sums in another order. A label that flipped would show as 1e-2.
    loaded, model = adapted
    rows = encoded(loaded, varied_rows(12))
    alone = estimate_fisher(model, rows, kind, batch_tokens=1)
    together = estimate_fisher(model, rows[::-1], kind, batch_tokens=4096)
    assert gap(together, alone) < TOLERANCE


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("left", "right"), [(0, 7), (17, 0), (3, 4)])
def test_padding_length_and_side_change_nothing(
    adapted: tuple[LoadedBase, Any], kind: Kind, left: int, right: int
) -> None:
    loaded, model = adapted
    rows = encoded(loaded, varied_rows(6))
    plain, padded = (FisherEstimate(model, SUMS[kind], "sampled", seed=0) for _ in range(2))
    for row in rows:
        batch = collate([row], loaded.pad_token)
        plain.add(batch, [row])
        padded.add(pad(batch, left, right, loaded.pad_token), [row])
    assert gap(padded.importance(kind), plain.importance(kind)) < TOLERANCE


def pad(batch: Batch, left: int, right: int, token: int) -> Batch:
    def widen(tensor: Tensor, value: int) -> Tensor:
        return torch.nn.functional.pad(tensor, (left, right), value=value)

    return Batch(
        widen(batch.input_ids, token), widen(batch.attention_mask, 0), widen(batch.labels, IGNORED), batch.rows
    )


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_over_rank_changes_nothing_at_the_same_product(base: Path, kind: Kind) -> None:
    loaded, model = lora_model(base, effect=0.1)
    rows = encoded(loaded, varied_rows(6))
    before = estimate_fisher(model, rows, kind)
    for layer in lora_layers(model):
        layer.module.scaling["default"] *= 8.0
        with torch.no_grad():
            layer.b.div_(8.0)
    assert gap(estimate_fisher(model, rows, kind), before) < TOLERANCE


def test_other_seeds_draw_other_labels(adapted: tuple[LoadedBase, Any]) -> None:
    loaded, model = adapted
    rows = encoded(loaded, varied_rows(6))
    first, second = (estimate_fisher(model, rows, "kfac", seed=seed) for seed in (0, 1))
    assert gap(second, first) > 0.01


def test_the_model_and_the_random_state_are_left_as_they_were(base: Path) -> None:
    loaded, model = lora_model(base, effect=0.1)
    model.train()
    model.base_model.model.lm_head.eval()
    frozen = next(layer.a for layer in lora_layers(model))
    frozen.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    wanting = [one.requires_grad for one in model.parameters()]
    values = [one.detach().clone() for one in model.parameters()]
    state = torch.get_rng_state()
    estimate_fisher(model, encoded(loaded, varied_rows(3)), "diagonal")
    assert modes == [module.training for module in model.modules()]
    assert wanting == [one.requires_grad for one in model.parameters()]
    assert all(torch.equal(one, two) for one, two in zip(values, model.parameters(), strict=True))
    assert all(one.grad is None for one in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())


def test_a_model_that_trains_nothing_has_the_same_fisher(base: Path) -> None:
    loaded, model = lora_model(base, effect=0.1)
    rows: Sequence[Encoded] = encoded(loaded, varied_rows(4))
    before = estimate_fisher(model, rows, "kfac")
    model.requires_grad_(False)
    assert gap(estimate_fisher(model, rows, "kfac"), before) < TOLERANCE


def test_tokens_left_out_of_the_loss_are_left_out_of_the_fisher(adapted: tuple[LoadedBase, Any]) -> None:
    _, model = adapted
    (row,) = rows_of_one_length(1)
    dropped = Encoded(row.row, row.prompt, row.completion, (), "", frozenset({0, 1, 2}))
    found = estimate_fisher(model, [dropped], "kfac", labels="data")
    assert (found.tokens, found.positions) == (1, 13)


def test_rows_are_chosen_by_what_they_are() -> None:
    rows = rows_of_one_length(20)
    chosen = choose_rows(rows, 8, seed=1)
    assert len(chosen) == 8
    assert choose_rows(rows[::-1], 8, seed=1) == chosen
    assert choose_rows(rows, 8, seed=2) != chosen
    assert len(choose_rows(rows, 50, seed=1)) == 20
