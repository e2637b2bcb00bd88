"""The loss and its gradient against closed forms, and their invariance to how the work is cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.trainer_base import encoded, lora_model, make_trainable_base, varied_rows
from trainer.batches import IGNORED, Batch, collate
from trainer.data import Encoded
from trainer.errors import Diverged, NoSupervisedTokens
from trainer.loop import accumulate, train
from trainer.objective import Objective, predict, token_nll
from trainer.schedule import Budget, LearningRate

TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lora_model(make_trainable_base(tmp_path_factory.mktemp("base") / "tiny"), effect=0.1)


def test_cross_entropy_is_the_mean_of_minus_log_p_over_answer_tokens_shifted_right(model: Any) -> None:
    """Brute force: one example at a time, no padding, softmax by hand, position by position."""
    loaded, lora = model
    examples = encoded(loaded, varied_rows(6))
    total, count = 0.0, 0
    with torch.no_grad():
        for example in examples:
            ids = [*example.prompt, *example.completion]
            logits = lora(input_ids=torch.tensor([ids])).logits[0].double()
            for position in range(len(example.prompt), len(ids)):
                probabilities = logits[position - 1].exp() / logits[position - 1].exp().sum()
                total -= math.log(float(probabilities[ids[position]]))
                count += 1
        loss = Objective()(lora, collate(examples, loaded.pad_token))
    assert float(loss.total) == pytest.approx(total / count, abs=TOLERANCE)


def test_a_batch_without_supervised_tokens_raises(model: Any) -> None:
    loaded, lora = model
    batch = collate(encoded(loaded, varied_rows(2)), loaded.pad_token)
    masked = Batch(batch.input_ids, batch.attention_mask, torch.full_like(batch.labels, IGNORED))
    with pytest.raises(NoSupervisedTokens):
        Objective()(lora, masked)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("extra", [0, 1, 17])
def test_loss_and_gradient_do_not_depend_on_padding(model: Any, side: str, extra: int) -> None:
    loaded, lora = model
    examples = encoded(loaded, varied_rows(6))
    expected = step(lora, [collate(examples, loaded.pad_token)])
    found = step(lora, [pad(examples, loaded.pad_token, side, extra)])
    assert_close(found, expected)


def test_positions_are_counted_from_each_rows_first_token_for_bases_that_know_absolute_ones() -> None:
    """Rotary positions are relative and would forgive a shift; learned ones would not."""
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    batch = Batch(torch.ones_like(mask), mask, torch.ones_like(mask))
    assert batch.position_ids.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]


@pytest.mark.parametrize("cut", [[6], [1, 5], [3, 3], [1, 1, 1, 1, 1, 1]])
def test_loss_and_gradient_do_not_depend_on_batch_size_and_accumulation(model: Any, cut: list[int]) -> None:
    loaded, lora = model
    examples = encoded(loaded, varied_rows(6))
    starts = [sum(cut[:index]) for index in range(len(cut))]
    pieces = [
        collate(examples[start : start + size], loaded.pad_token) for start, size in zip(starts, cut, strict=True)
    ]
    assert_close(step(lora, pieces), step(lora, [collate(examples, loaded.pad_token)]))


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_penalty_on_the_weights_counts_once_per_step_whatever_the_accumulation(model: Any, cut: int) -> None:
    """Closed form: the gradient of ½‖θ‖² is θ, so it adds θ to the gradient of the cross entropy."""
    loaded, lora = model
    examples = encoded(loaded, varied_rows(6))
    pieces = [collate(examples[index::cut], loaded.pad_token) for index in range(cut)]
    plain, with_penalty = step(lora, pieces), step(lora, pieces, Objective([HalfSquaredNorm()]))
    weights = [parameter.detach() for parameter in lora.parameters() if parameter.requires_grad]
    norm = sum(float(weight.square().sum()) for weight in weights) / 2
    assert with_penalty[0] - plain[0] == pytest.approx(norm, rel=1e-4)
    for mine, theirs, weight in zip(with_penalty[1], plain[1], weights, strict=True):
        torch.testing.assert_close(mine - theirs, weight, atol=TOLERANCE, rtol=1e-4)


def test_parts_name_every_term(model: Any) -> None:
    loaded, lora = model
    loss = Objective([HalfSquaredNorm()])(lora, collate(encoded(loaded, varied_rows(2)), loaded.pad_token))
    assert set(loss.parts) == {"cross_entropy", "half squared norm"}
    assert float(loss.total.detach()) == pytest.approx(sum(loss.parts.values()), rel=1e-6)


def test_nll_is_zero_where_nothing_is_supervised(model: Any) -> None:
    loaded, lora = model
    batch = collate(encoded(loaded, varied_rows(6)), loaded.pad_token)
    with torch.no_grad():
        nll = token_nll(predict(lora, batch), batch)
    labels = batch.labels[:, -nll.shape[1] :]
    assert not nll[labels == IGNORED].any()
    assert (nll[labels != IGNORED] > 0).all()


def test_a_loss_that_is_not_finite_is_refused_before_the_step_is_taken(tmp_path: Path) -> None:
    loaded, lora = lora_model(make_trainable_base(tmp_path / "tiny"))
    parameters = [parameter for parameter in lora.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.AdamW(parameters)
    batches = Repeated(collate(encoded(loaded, varied_rows(2)), loaded.pad_token))
    run = train(
        lora,
        batches,
        Objective([NotANumber()]),
        optimizer,
        budget=Budget(3),
        learning_rate=LearningRate(1.0, "constant", 0.0),
    )
    with pytest.raises(Diverged, match="step 1: loss nan"):
        next(run)
    assert all(torch.equal(one, two) for one, two in zip(before, parameters, strict=True))


@pytest.mark.parametrize(
    ("schedule", "halfway", "end"), [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0)]
)
def test_the_rate_rises_and_falls_as_the_schedule_says(schedule: Any, halfway: float, end: float) -> None:
    rate = LearningRate(1.0, schedule, 0.1)
    assert 0 < rate.at(0.0, 0) <= rate.at(0.05, 5) == 0.5
    assert rate.at(0.55, 55) == pytest.approx(halfway)
    assert rate.at(1.0, 100) == pytest.approx(end)


def test_a_budget_ends_at_its_steps_or_its_seconds_whichever_comes_first() -> None:
    assert Budget(10).progress(5, 1e9) == 0.5
    assert Budget(10, 4.0).progress(5, 3.0) == 0.75
    assert Budget(10, 4.0).progress(5, 9.0) == 1.0


class HalfSquaredNorm:
    name = "half squared norm"

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        squares = [parameter.square().sum() for parameter in model.parameters() if parameter.requires_grad]
        return torch.stack(squares).sum() / 2


class NotANumber:
    name = "not a number"

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        return logits.sum() * math.nan


class Repeated:
    """A batch source of one batch."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def next(self) -> Batch:
        return self._batch

    def state(self) -> dict[str, int]:
        return {}

    def restore(self, state: object) -> None: ...


def step(lora: Any, batches: list[Batch], objective: Objective | None = None) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one optimiser step."""
    lora.zero_grad(set_to_none=True)
    loss, _ = accumulate(lora, batches, objective or Objective())
    return loss, [parameter.grad.clone() for parameter in lora.parameters() if parameter.requires_grad]


def assert_close(found: tuple[float, list[Tensor]], expected: tuple[float, list[Tensor]]) -> None:
    assert found[0] == pytest.approx(expected[0], abs=TOLERANCE)
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, atol=TOLERANCE, rtol=1e-4)


def pad(examples: Sequence[Encoded], pad_token: int, side: str, extra: int) -> Batch:
    """The same batch padded by hand on either side, `extra` columns longer than needed."""
    longest = max(len(example) for example in examples) + extra
    ids, mask, labels = [], [], []
    for example in examples:
        gap = longest - len(example)
        left, right = (gap, 0) if side == "left" else (0, gap)
        ids.append([pad_token] * left + [*example.prompt, *example.completion] + [pad_token] * right)
        mask.append([0] * left + [1] * len(example) + [0] * right)
        labels.append([IGNORED] * (left + len(example.prompt)) + [*example.completion] + [IGNORED] * right)
    return Batch(torch.tensor(ids), torch.tensor(mask), torch.tensor(labels))
