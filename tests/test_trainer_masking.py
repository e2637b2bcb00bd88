"""Selective token masking: which tokens of an answer are learned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.trainer_base import encoded, varied_rows
from tests.trainer_methods import Silent, Workshop, assert_quiet, make_workshop
from trainer.batches import collate
from trainer.data import Encoded
from trainer.distillation.teacher import completion_nlls
from trainer.errors import DataInvalid, NoSupervisedTokens
from trainer.methods.masking import build, improbable
from trainer.methods.recipe import Context
from trainer.methods.settings import Masking
from trainer.objective import Objective


class Listener(Silent):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def say(self, text: str) -> None:
        self.heard.append(text)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("masking"))


@pytest.fixture
def context(workshop: Workshop, tmp_path: Path) -> Context:
    made = workshop.context(cache=tmp_path)
    return replace(made, examples=tuple(encoded(made.loaded, varied_rows(10))))


def perplexities_by_hand(context: Context, example: Encoded) -> list[float]:
    """One row without padding: the softmax at position t − 1 read at the token at t, in float64."""
    ids = [*example.prompt, *example.completion]
    with torch.no_grad():
        logits = context.model.eval()(input_ids=torch.tensor([ids])).logits[0].double()
    found = []
    for at in range(len(example.prompt), len(ids)):
        weights = [math.exp(float(one)) for one in logits[at - 1]]
        found.append(sum(weights) / weights[ids[at]])
    return found


def test_a_token_is_kept_where_its_perplexity_under_the_start_is_at_most_the_threshold(context: Context) -> None:
    hand = [perplexities_by_hand(context, example) for example in context.examples]
    middle = sorted(one for row in hand for one in row)[sum(map(len, hand)) // 2] * (1 + 1e-6)
    recipe = build(Masking(threshold=middle), context)
    (rewrite,) = recipe.rewrite
    kept = {one.prompt: one for one in rewrite(context.examples)}
    expected = [{at for at, one in enumerate(row) if one > middle} for row in hand]
    assert any(expected)
    for example, dropped in zip(context.examples, expected, strict=True):
        if len(dropped) < len(example.completion):
            assert kept[example.prompt] == replace(example, dropped=frozenset(dropped))
        else:
            assert example.prompt not in kept
    found = recipe.finish["masking"](context.model, context.cache)
    total = sum(map(len, hand))
    assert found["kept_share"] == round(1 - sum(map(len, expected)) / total, 4)
    assert found["rows_left_out"] == sum(len(one) == len(row) for one, row in zip(expected, hand, strict=True))


def test_a_perplexity_equal_to_the_threshold_is_kept() -> None:
    nlls = torch.tensor([0.0, 2.0, 5.0])
    assert improbable(nlls, math.exp(2.0)) == [2]


def test_padding_and_order_do_not_change_what_a_token_costs(context: Context) -> None:
    together = completion_nlls(context.model, context.examples, 4096, 0, context.observer)
    for example, nlls in zip(context.examples, together, strict=True):
        alone = completion_nlls(context.model, [example], 1, 0, context.observer)[0]
        torch.testing.assert_close(nlls, alone, rtol=0, atol=2e-5)  # float32 sums in another order


def test_the_starting_model_is_read_once_for_a_run(context: Context) -> None:
    first = build(Masking(threshold=300.0), context)
    for parameter in context.model.parameters():
        parameter.data.zero_()  # whatever is read from now on is wrong
    again = build(Masking(threshold=300.0), context)
    assert again.rewrite[0](context.examples) == first.rewrite[0](context.examples)
    assert again.finish["masking"](None, context.cache) == first.finish["masking"](None, context.cache)


def test_building_leaves_no_trace_and_a_threshold_that_nothing_exceeds_changes_no_row(context: Context) -> None:
    recipe = assert_quiet(context, lambda one: build(Masking(threshold=1e30), one))
    assert recipe.rewrite[0](context.examples) == context.examples


def test_keeping_little_is_said_aloud_and_keeping_nothing_is_refused(context: Context) -> None:
    listener = Listener()
    listening = replace(context, observer=listener)
    hand = sorted(one for example in context.examples for one in perplexities_by_hand(context, example))
    build(Masking(threshold=hand[len(hand) // 10]), listening)
    assert any("keeps only" in text for text in listener.heard)
    assert any("rows have no token left" in text for text in listener.heard)
    with pytest.raises(DataInvalid, match="every token"):
        build(Masking(threshold=1.0 + 1e-9), listening)


def test_a_batch_of_which_every_token_is_dropped_raises(context: Context) -> None:
    empty = [replace(one, dropped=frozenset(range(len(one.completion)))) for one in context.examples]
    with pytest.raises(NoSupervisedTokens):
        Objective()(context.model, collate(empty, context.loaded.pad_token))
