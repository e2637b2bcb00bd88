"""The Fisher of softmax regression, known in closed form: its diagonal is mean p(1−p)x², per class and feature."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from trainer.batches import collate
from trainer.data import Encoded
from trainer.errors import ConfigInvalid, DataInvalid
from trainer.fisher.estimate import draw_labels, estimate_fisher
from trainer.fisher.importance import Diagonal, Importance, Kronecker
from trainer.lora import lora_layers
from trainer.methods.settings import Labels

CLASSES, FEATURES, ROWS = 4, 3, 240


class Regression(torch.nn.Module):
    """p(label | x) = softmax(W x) as a causal model: token i stands for the features of row i."""

    def __init__(self, features: Tensor, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = torch.nn.Linear(features.shape[1], classes, bias=False)

    def forward(self, input_ids: Tensor, logits_to_keep: int, **_: Any) -> Any:
        return SimpleNamespace(logits=self.head(self.features[input_ids])[:, -logits_to_keep:])


class Problem:
    """Rows, the adapted model, and what is true of it in closed form, in float64."""

    def __init__(self, classes: int = CLASSES) -> None:
        torch.manual_seed(0)
        self.classes = classes
        features = torch.randn(ROWS, FEATURES)
        shape = LoraConfig(r=2, target_modules=["head"])
        self.model: Any = get_peft_model(Regression(features, classes), shape)
        self.head: Any = lora_layers(self.model)[0].module
        torch.nn.init.normal_(self.head.lora_B["default"].weight)
        self.x = features.double()
        with torch.no_grad():
            self.p: Tensor = self.head(features).double().softmax(-1)

    def rows(self, labels: Tensor | None = None) -> list[Encoded]:
        answers = torch.zeros(ROWS, dtype=torch.long) if labels is None else labels
        return [Encoded(f"{row}", (row,), (int(answers[row]),), (), "") for row in range(ROWS)]

    def drawn(self, seed: int) -> Tensor:
        draw = torch.Generator().manual_seed(seed)
        return torch.multinomial(self.p, 1, generator=draw).squeeze(1)

    @property
    def exact(self) -> Tensor:
        return (self.p * (1 - self.p)).T @ self.x.square() / ROWS

    @property
    def standard_error(self) -> Tensor:
        """Of the mean over rows of (p_c − e_ŷc)² x_j² with ŷ ~ p: from its second and fourth moment."""
        second = self.p * (1 - self.p)
        fourth = self.p * (1 - self.p) ** 4 + (1 - self.p) * self.p**4
        return ((fourth - second**2).T @ self.x**4).sqrt() / ROWS


@pytest.fixture(scope="module")
def problem() -> Problem:
    return Problem()


def diagonal(importance: Importance) -> Tensor:
    (layer,) = importance.layers.values()
    assert isinstance(layer, Diagonal)
    return layer.values.double()


def mean_over_seeds(problem: Problem, labels: Labels, seeds: int) -> Tensor:
    found = [
        estimate_fisher(problem.model, problem.rows(problem.drawn(seed)), "diagonal", labels=labels, seed=seed)
        for seed in range(seeds)
    ]
    return torch.stack([diagonal(one) for one in found]).mean(0)


def test_exact_labels_give_the_closed_form(problem: Problem) -> None:
    # Expected: mean p(1−p)x², by hand; tolerance 1e-6 relative to the largest entry, for float32.
    found = estimate_fisher(problem.model, problem.rows(), "diagonal", labels="exact")
    assert torch.allclose(diagonal(found), problem.exact, rtol=0, atol=1e-6 * float(problem.exact.max()))
    assert (found.tokens, found.positions, found.sequences) == (ROWS, 2 * ROWS, ROWS)


@pytest.mark.parametrize("labels", ["sampled", "data"])
def test_labels_drawn_from_the_model_give_it_within_three_standard_errors(problem: Problem, labels: Labels) -> None:
    # 20 independent estimates; the standard error of their mean comes from the moments of the draw, by hand.
    gap = mean_over_seeds(problem, labels, 20) - problem.exact
    assert float((gap.abs() / (problem.standard_error / math.sqrt(20))).max()) < 3


def test_the_empirical_fisher_of_other_labels_is_another_matrix(problem: Problem) -> None:
    found = estimate_fisher(problem.model, problem.rows(), "diagonal", labels="data")
    assert float(((diagonal(found) - problem.exact).abs() / problem.standard_error).max()) > 10


def test_kronecker_factors_are_the_second_moments_of_gradients_and_inputs(problem: Problem) -> None:
    # Expected: S = mean diag(p) − ppᵀ over answers; C over all tokens, prompt and answer. Tolerance 1e-5 for float32.
    answers = problem.drawn(0)
    found = estimate_fisher(problem.model, problem.rows(answers), "kfac", labels="exact")
    (layer,) = found.layers.values()
    assert isinstance(layer, Kronecker)
    ((out, into),) = layer.terms
    expected = (torch.diag(problem.p.sum(0)) - problem.p.T @ problem.p) / ROWS
    assert torch.allclose(out.double(), expected, atol=1e-5)
    read = torch.cat([problem.x, problem.x[answers]])
    assert torch.allclose(into.double(), read.T @ read / len(read), atol=1e-5)


def test_the_square_of_a_batch_mean_gradient_is_one_bth_of_the_fisher(problem: Problem) -> None:
    """The trap: expected 1/b for the squared gradient of a batch's mean loss, within 3 standard errors over batches;
    reading the same batches at once, the estimator gives the whole (within 3 of its own).
    """
    size, squares = 8, []
    weight = problem.head.base_layer.weight.requires_grad_()
    for seed in range(20):
        labels = problem.drawn(seed)
        for first in range(0, ROWS, size):
            rows = slice(first, first + size)
            loss = cross_entropy(problem.head(problem.x[rows].float()), labels[rows])
            (gradient,) = torch.autograd.grad(loss, weight)
            squares.append(float(gradient.square().sum()))
    weight.requires_grad_(False)
    ratios = torch.tensor(squares, dtype=torch.float64) / float(problem.exact.sum())
    assert abs(float(ratios.mean()) - 1 / size) < 3 * float(ratios.std()) / math.sqrt(len(ratios))
    found = [
        estimate_fisher(problem.model, problem.rows(), "diagonal", seed=seed, batch_tokens=2 * size)
        for seed in range(20)
    ]
    whole = torch.stack([diagonal(one).sum() for one in found]) / float(problem.exact.sum())
    assert abs(float(whole.mean()) - 1) < 3 * float(whole.std()) / math.sqrt(20)


def test_a_drawn_label_has_the_models_probability(problem: Problem) -> None:
    # Expected: Σ over rows of p_c; counted over 30 seeds, within 3 binomial standard errors.

    rows = problem.rows()
    batch = collate(rows, 0)
    logits = problem.p.float().unsqueeze(1)
    counts = sum(
        one_hot(draw_labels(logits, batch, rows, seed).squeeze(1), CLASSES).double().sum(0) for seed in range(30)
    )
    spread = (30 * (problem.p * (1 - problem.p)).sum(0)).sqrt()
    assert float(((torch.as_tensor(counts) - 30 * problem.p.sum(0)).abs() / spread).max()) < 3


def test_every_label_of_a_large_vocabulary_is_refused() -> None:
    large = Problem(classes=1025)
    with pytest.raises(ConfigInvalid, match="labels=exact over 1025 labels, the most is 1024"):
        estimate_fisher(large.model, large.rows(), "kfac", labels="exact")


def test_rows_without_a_supervised_token_are_refused(problem: Problem) -> None:
    rows = [Encoded("1", (1,), (2,), (), "", frozenset({0}))]
    with pytest.raises(DataInvalid, match="supervised"):
        estimate_fisher(problem.model, rows, "diagonal")
