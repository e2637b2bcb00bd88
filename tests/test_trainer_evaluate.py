"""Scores against brute force, metrics, and the adapter folder's round trip."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import StoppingCriteriaList

from adapters.base import find_base
from adapters.check import Limits, check_folder
from tests.trainer_base import SHAPE, encoded, loaded_base, lora_model, make_trainable_base, varied_rows
from trainer.batches import collate
from trainer.config import ScoredMetric
from trainer.errors import BaseUnusable
from trainer.evaluate import Evaluator, greedy
from trainer.metrics import TextMetric, can_still_match, score_text
from trainer.model import add_lora, load_adapter, load_weights, save_adapter, target_modules
from trainer.objective import predict

NLL_TOLERANCE = 1e-5  # nats per token, float32 against float32 in another order of additions


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trainable_base(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def model(base: Path) -> Any:
    return lora_model(base, effect=0.1)


def evaluator(model: Any, metric: ScoredMetric = "exact_match", **settings: int) -> Evaluator:
    loaded, lora = model
    return Evaluator(lora, loaded.tokenizer, loaded.end_tokens, loaded.pad_token, metric, **settings)


def test_nll_is_that_of_one_item_at_a_time_without_padding(model: Any) -> None:
    """Brute force: cross entropy of the answer's positions from a forward pass per item."""
    loaded, lora = model
    items = encoded(loaded, varied_rows(9))
    scored = evaluator(model, batch_rows=4).score(items)
    for item, found in zip(items, scored, strict=True):
        ids = torch.tensor([[*item.prompt, *item.completion]])
        with torch.no_grad():
            logprobs = lora(input_ids=ids).logits[0, len(item.prompt) - 1 : -1].log_softmax(-1)
        expected = -logprobs.gather(1, torch.tensor(item.completion)[:, None]).mean()
        assert found.score.nll == pytest.approx(float(expected), abs=NLL_TOLERANCE)
        assert found.score.tokens == len(item.completion)


def test_batched_left_padded_answers_equal_those_of_one_at_a_time(model: Any) -> None:
    items = encoded(model[0], varied_rows(9))
    batched = evaluator(model, "contains", batch_rows=9).score(items)
    alone = evaluator(model, "contains", batch_rows=1).score(items)
    assert [one.output for one in batched] == [one.output for one in alone]
    assert len({one.output for one in alone}) > 3, "the base must say different things for this to prove anything"


def test_stopping_early_on_wrong_answers_changes_no_exact_match(model: Any) -> None:
    """Half of the items want exactly what full decoding writes, the others something else."""
    loaded, _ = model
    rows = varied_rows(8)
    written = evaluator(model, "contains", max_new_tokens=12).score(encoded(loaded, rows))
    wanted = [
        (ask, full.output if index % 2 else answer)
        for index, ((ask, answer), full) in enumerate(zip(rows, written, strict=True))
    ]
    items = [item for item in encoded(loaded, wanted) if item.answer.strip()]
    full = [score_text("exact_match", one.output, item.answer) for one, item in zip(written, items, strict=True)]
    early = evaluator(model, max_new_tokens=12).score(items)
    assert [one.score.score for one in early] == full
    assert sum(full) >= 4


def test_with_the_adapter_disabled_the_base_is_scored(base: Path, model: Any) -> None:
    items = encoded(model[0], varied_rows(4))
    plain = loaded_base(base)
    untouched = Evaluator(plain.model, plain.tokenizer, plain.end_tokens, plain.pad_token, "exact_match").score(items)
    with model[1].disable_adapter():
        disabled = evaluator(model).score(items)
    assert disabled == untouched
    assert evaluator(model).score(items) != untouched


def test_scoring_draws_no_random_numbers_and_leaves_sampling_defaults_of_the_base_aside(model: Any) -> None:
    before = torch.get_rng_state()
    items = encoded(model[0], varied_rows(4))
    assert evaluator(model).score(items) == evaluator(model).score(items)
    assert torch.equal(before, torch.get_rng_state())
    assert not greedy(model[1], items, 0, 4, StoppingCriteriaList()).isnan().any()


def test_an_adapter_folder_gives_back_the_same_logits_and_passes_the_publication_check(
    base: Path, model: Any, tmp_path: Path
) -> None:
    loaded, lora = model
    folder = tmp_path / "adapter"
    save_adapter(lora, folder, loaded.base.id)
    batch = collate(encoded(loaded, varied_rows(5)), loaded.pad_token)
    again = load_adapter(loaded_base(base), folder)
    with torch.no_grad():
        assert torch.equal(predict(again, batch), predict(lora, batch))
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "tiny"
    assert str(base.parent) not in (folder / "adapter_config.json").read_text(encoding="utf-8")
    checked = check_folder(folder, find_base(str(base)), limits=Limits())
    assert checked.rank == 4


def test_weights_of_another_rank_are_refused(base: Path, model: Any, tmp_path: Path) -> None:
    save_adapter(model[1], tmp_path / "adapter", "tiny")
    other = add_lora(loaded_base(base), replace(SHAPE, rank=2))
    with pytest.raises(BaseUnusable, match="tensors differ"):
        load_weights(other, tmp_path / "adapter")


def test_a_target_that_the_base_lacks_is_refused_with_the_names_it_has(base: Path) -> None:
    with pytest.raises(BaseUnusable, match=r"no linear layer named nonsense .*q_proj"):
        target_modules(loaded_base(base).model, ("q_proj", "nonsense"))


def test_all_linear_is_every_linear_layer_but_the_head(base: Path) -> None:
    expected = ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    assert target_modules(loaded_base(base).model, ("all-linear",)) == expected


@pytest.mark.parametrize(
    ("metric", "output", "answer", "score"),
    [
        ("exact_match", " yes\n", "yes", 1.0),
        ("exact_match", "Yes", "yes", 0.0),
        ("contains", "well, yes.", "yes", 1.0),
        ("contains", "no", "yes", 0.0),
        ("json_equal", '{"b": 1, "a": [2]}', '{"a":[2],"b":1}', 1.0),
        ("json_equal", '{"a": true}', '{"a": 1}', 0.0),
        ("json_equal", "not json", '{"a": 1}', 0.0),
        ("json_equal", "[" * 100_000, "[]", 0.0),
        ("json_equal", "NaN", "NaN", 0.0),
    ],
)
def test_a_metric_scores_as_its_name_says(metric: TextMetric, output: str, answer: str, score: float) -> None:
    assert score_text(metric, output, answer) == score


@given(answer=st.text(), cut=st.integers(0, 50))
def test_every_beginning_of_a_right_answer_can_still_match(answer: str, cut: int) -> None:
    assert can_still_match(answer[:cut], answer)
    assert can_still_match(answer[:cut].rstrip() + "\ufffd", answer)


@given(output=st.text(), answer=st.text())
def test_an_output_that_matches_is_never_called_wrong_on_the_way(output: str, answer: str) -> None:
    if score_text("exact_match", output, answer):
        assert can_still_match(output, answer)
