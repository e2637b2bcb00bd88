"""Curvatures: low rank equals dense, sums are exact, files give back what was written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from trainer.errors import CheckpointInvalid, ConfigInvalid
from trainer.fisher.folder import load_importance, save_importance
from trainer.fisher.importance import Diagonal, Importance, Kind, Kronecker, fold, uniform
from trainer.lora import Factors

OUT, IN, RANK = 7, 5, 3
KINDS: tuple[Kind, ...] = ("diagonal", "kron_diagonal", "kfac", "uniform")


def positive(size: int, generator: torch.Generator) -> Tensor:
    root = torch.randn(size, size, generator=generator)
    return root @ root.T


def make_importance(kind: Kind, seed: int, tokens: float = 10.0) -> Importance:
    draw = torch.Generator().manual_seed(seed)

    def layer() -> Diagonal | Kronecker:
        if kind in ("diagonal", "uniform"):
            return Diagonal(torch.rand(OUT, IN, generator=draw))
        if kind == "kron_diagonal":
            return Kronecker(((torch.rand(OUT, generator=draw), torch.rand(IN, generator=draw)),))
        return Kronecker(((positive(OUT, draw), positive(IN, draw)),))

    made = Importance(
        "diagonal" if kind == "uniform" else kind, "sampled", {"q": layer(), "v": layer()}, tokens, 9, 20, 4
    )
    return uniform(made) if kind == "uniform" else made


def move(seed: int, rank: int = RANK) -> dict[str, Factors]:
    draw = torch.Generator().manual_seed(seed)
    return {
        name: Factors(torch.randn(OUT, rank, generator=draw), torch.randn(rank, IN, generator=draw))
        for name in ("q", "v")
    }


def dense_omega(importance: Importance, differences: Mapping[str, Factors]) -> Tensor:
    """Brute force: F as a full (out·in, out·in) matrix in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for name, curvature in importance.layers.items():
        flat = differences[name].dense.double().flatten()
        if isinstance(curvature, Diagonal):
            full = torch.diag(curvature.values.double().flatten())
        else:
            assert isinstance(curvature, Kronecker)
            full = torch.zeros(OUT * IN, OUT * IN, dtype=torch.float64)
            for out, into in curvature.terms:
                full += torch.kron(as_matrix(out, OUT), as_matrix(into, IN))
        total += 0.5 * flat @ full @ flat
    return total


def as_matrix(side: Tensor, size: int) -> Tensor:
    if side.dim() == 2:
        return side.double()
    return torch.diag(side.double().expand(size))


@pytest.mark.parametrize("kind", KINDS)
def test_the_low_rank_penalty_equals_the_dense_one(kind: Kind) -> None:
    # Expected: ½ vec(D)ᵀ F vec(D) with F written out in float64; tolerance 1e-5 relative, for float32 sums.
    importance = make_importance(kind, seed=1)
    assert float(importance.omega(move(2))) == pytest.approx(float(dense_omega(importance, move(2))), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_around_a_start_the_penalty_is_that_of_the_difference(kind: Kind) -> None:
    # Expected: ½ vec(ΔW − ΔW*)ᵀ F vec(ΔW − ΔW*) of two tasks in float64; 1e-5 of the largest of its terms, for float32.
    importance = fold(make_importance(kind, 1), make_importance(kind, 2), 0.9)
    now, start = move(3), move(4, rank=2)
    prices = {name: curvature.around(start[name]) for name, curvature in importance.layers.items()}
    expected = float(dense_omega(importance, {name: now[name].minus(start[name]) for name in now}))
    largest = max(float(dense_omega(importance, one)) for one in (now, start))
    assert float(sum(prices[name](now[name]) for name in now)) == pytest.approx(expected, abs=1e-5 * largest)
    assert float(sum(prices[name](start[name]) for name in start)) == pytest.approx(0.0, abs=1e-5 * largest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_fold_of_tasks_is_the_token_weighted_mean_of_their_penalties(kind: Kind) -> None:
    # Expected: Σ γ^(t−i) T_i Ω_i / Σ γ^(t−i) T_i over three unequal tasks, γ = 0.5; tolerance 1e-5 for float32.
    tasks = [make_importance(kind, seed, tokens) for seed, tokens in ((1, 10.0), (2, 400.0), (3, 70.0))]
    folded = fold(fold(tasks[0], tasks[1], 0.5), tasks[2], 0.5)
    weights = [10.0 * 0.25, 400.0 * 0.5, 70.0]
    expected = sum(w * float(dense_omega(one, move(5))) for w, one in zip(weights, tasks, strict=True)) / sum(weights)
    assert folded.tokens == sum(weights)
    assert float(folded.omega(move(5))) == pytest.approx(expected, rel=1e-5)


def test_summing_kronecker_factors_apart_would_charge_other_moves() -> None:
    # The exact sum S₁⊗C₁ + S₂⊗C₂ against the usual (S₁+S₂)⊗(C₁+C₂)/2, which adds S₁⊗C₂ and S₂⊗C₁.
    first, second = (make_importance("kfac", seed) for seed in (1, 2))
    pairs = [one.layers["q"] for one in (first, second)]
    assert all(isinstance(pair, Kronecker) for pair in pairs)
    (s1, c1), (s2, c2) = (pair.terms[0] for pair in pairs if isinstance(pair, Kronecker))
    usual = Kronecker((((s1 + s2) / 2, (c1 + c2) / 2),))
    exact = fold(first, second, 1.0).layers["q"]
    ratios = [float(usual.omega(move(seed)["q"]) / exact.omega(move(seed)["q"])) for seed in range(5)]
    assert max(ratios) - min(ratios) > 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_comes_back(kind: Kind, tmp_path: Path) -> None:
    importance = fold(make_importance(kind, 1), make_importance(kind, 2), 0.9)
    save_importance(importance, tmp_path / "left")
    loaded = load_importance(tmp_path / "left")
    assert (loaded.kind, loaded.labels, loaded.tokens) == (importance.kind, importance.labels, importance.tokens)
    assert (loaded.measured, loaded.positions, loaded.sequences) == (18, 40, 8)
    assert torch.equal(loaded.omega(move(3)), importance.omega(move(3)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["left"]


def test_a_folder_without_an_importance_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointInvalid, match="the importance in left cannot be read"):
        load_importance(tmp_path / "left")


def test_folding_unlike_importances_names_every_difference() -> None:
    old, new = make_importance("kfac", 1), replace(make_importance("diagonal", 1), labels="data")
    with pytest.raises(ConfigInvalid) as caught:
        fold(old, new, 1.0)
    assert caught.value.problems == ("kind: kfac so far, diagonal now", "labels: sampled so far, data now")


def test_the_uniform_importance_is_the_mean_over_all_layers() -> None:
    # Expected: the mean of all 2 · 35 diagonal entries times ½ ‖D‖²; tolerance 1e-5 for float32 sums.
    diagonal = make_importance("diagonal", 4)
    values = [one.values for one in diagonal.layers.values() if isinstance(one, Diagonal)]
    norm = sum(float(factors.dense.square().sum()) for factors in move(6).values())
    expected = 0.5 * float(torch.cat(values).mean()) * norm
    assert float(uniform(diagonal).omega(move(6))) == pytest.approx(expected, rel=1e-5)
