"""One teacher-forced pass says what decoding says, and measures divergences as their formula does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.trainer_base import colour_rows, encoded, lora_model, make_trainable_base, varied_rows
from trainer.batches import ShuffledBatches, collate
from trainer.data import Encoded
from trainer.evaluate import Evaluator
from trainer.loop import train
from trainer.model import LoadedBase
from trainer.objective import Objective, predict
from trainer.schedule import Budget, LearningRate
from trainer.sequences.teacher_forced import compare_with_decoding, mean_kl, score_forced

Parts = tuple[LoadedBase, Any, list[Encoded]]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Parts:
    """A model that has learned the easier half of 100 items, and the items."""
    torch.set_num_threads(1)
    loaded, model = lora_model(make_trainable_base(tmp_path_factory.mktemp("base") / "tiny"))
    items = encoded(loaded, [row for pair in zip(colour_rows(50), varied_rows(50), strict=True) for row in pair])
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.02)
    batches = ShuffledBatches(items, batch_tokens=512, seed=0, pad_token=loaded.pad_token)
    rate = LearningRate(0.02, "constant", 0.0)
    for _ in train(model, batches, Objective(), optimizer, budget=Budget(40), learning_rate=rate):
        pass
    return loaded, model, items


def test_of_100_items_teacher_forcing_and_decoding_call_the_same_ones_right(parts: Parts) -> None:
    loaded, model, items = parts
    right = sum(one.exact for one in score_forced(model, items, loaded.pad_token))
    assert 10 < right < 90
    agreement = compare_with_decoding(model, loaded, items)
    assert (agreement.items, agreement.differ, agreement.share) == (100, (), 1.0)


def test_an_item_is_right_only_if_its_end_is_right_too(parts: Parts) -> None:
    loaded, model, items = parts
    right = next(
        item for item, one in zip(items, score_forced(model, items, loaded.pad_token), strict=True) if one.exact
    )
    unended = Encoded(right.row, right.prompt, (*right.completion[:-1], 7, 0), right.messages, right.answer)
    assert not score_forced(model, [unended], loaded.pad_token)[0].exact


def test_its_nll_is_the_evaluators(parts: Parts) -> None:
    loaded, model, items = parts
    evaluator = Evaluator(model, loaded.tokenizer, loaded.end_tokens, loaded.pad_token, "exact_match")
    forced = score_forced(model, items[:20], loaded.pad_token)
    decoded = evaluator.score(items[:20])
    assert [one.nll for one in forced] == pytest.approx([one.score.nll for one in decoded], abs=1e-4)


def test_bfloat16_is_near_and_off_by_default(parts: Parts) -> None:
    loaded, model, items = parts
    plain, rounded = (score_forced(model, items[:20], loaded.pad_token, one) for one in ("float32", "bfloat16"))
    assert [one.nll for one in rounded] == pytest.approx([one.nll for one in plain], rel=0.1, abs=0.1)
    assert rounded != plain
    assert score_forced(model, items[:20], loaded.pad_token) == plain


def test_the_divergence_is_the_mean_of_its_definition_over_supervised_positions(parts: Parts) -> None:
    """Expected: Σ p_base (log p_base − log p) by hand, item by item without padding, over all positions; 1e-4."""
    loaded, model, items = parts
    total, count = 0.0, 0
    for item in items[:12]:
        batch = collate([item], loaded.pad_token)
        with torch.no_grad():
            after = predict(model, batch).softmax(-1).double()
            with model.disable_adapter():
                before = predict(model, batch).softmax(-1).double()
        total += float((before * (before / after).log()).sum())
        count += len(item.completion)
    assert mean_kl(model, model.disable_adapter, items[:12], loaded.pad_token) == pytest.approx(total / count, rel=1e-4)


def test_a_model_does_not_diverge_from_itself(parts: Parts) -> None:
    loaded, model, items = parts

    @contextmanager
    def same() -> Iterator[None]:
        yield

    assert mean_kl(model, same, items, loaded.pad_token) == 0.0
