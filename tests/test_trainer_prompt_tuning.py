"""Prompt tuning through the trainer's own loop and scoring, against the base fed with embeddings by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

from tests.trainer_base import encoded, loaded_base, varied_rows
from tests.trainer_methods import Workshop, assert_exact_resume, make_workshop, nll, same, weights
from trainer.batches import collate
from trainer.data import Encoded
from trainer.errors import BaseUnusable, ConfigInvalid
from trainer.evaluate import Evaluator, greedy
from trainer.methods.recipe import Context, Recipe
from trainer.model import LoadedBase, load_base, save_adapter
from trainer.objective import predict, token_nll
from trainer.prompt_tuning import add_prompt, load_prompt

TOKENS = 5


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("prompt"))


@pytest.fixture(scope="module")
def prompted(workshop: Workshop) -> tuple[LoadedBase, Any, list[Encoded]]:
    loaded = loaded_base(workshop.folder / "tiny")
    return loaded, add_prompt(loaded, TOKENS), encoded(loaded, varied_rows(6))


def row_nlls(model: Any, loaded: LoadedBase, rows: list[Encoded]) -> list[float]:
    batch = collate(rows, loaded.pad_token)
    with torch.no_grad():
        found: list[float] = token_nll(predict(model, batch), batch).sum(dim=1).tolist()
    return found


def logits_by_hand(loaded: LoadedBase, model: Any, ids: list[int]) -> torch.Tensor:
    """The base fed with [P; E(ids)], no padding, no mask; the logits after each of `ids`, (len(ids), vocabulary)."""
    prompt = model.prompt_encoder["default"].embedding.weight
    text = loaded.model.get_input_embeddings()(torch.tensor(ids))
    with torch.no_grad():
        logits: torch.Tensor = loaded.model(inputs_embeds=torch.cat([prompt, text])[None]).logits[0]
    return logits[TOKENS:]


def test_a_rows_nll_is_the_one_by_hand_whatever_the_padding(prompted: tuple[LoadedBase, Any, list[Encoded]]) -> None:
    """All rows in one batch, padded on the left to one length; tolerance 1e-4 nats."""
    loaded, model, rows = prompted
    found = row_nlls(model, loaded, rows)
    for row, total in zip(rows, found, strict=True):
        log_probs = logits_by_hand(loaded, model, [*row.prompt, *row.completion]).log_softmax(dim=-1)
        ahead = log_probs[len(row.prompt) - 1 : -1]
        by_hand = -sum(float(ahead[at, token]) for at, token in enumerate(row.completion))
        assert total == pytest.approx(by_hand, abs=1e-4)


def test_pefts_own_model_depends_on_the_padding(workshop: Workshop) -> None:
    """The trap that `PromptModel` repairs: the shortest row alone and beside longer ones differ by over 0.1 nats."""
    loaded = loaded_base(workshop.folder / "tiny")
    model = get_peft_model(loaded.model, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS))
    rows = sorted(encoded(loaded, varied_rows(6)), key=len)
    with pytest.warns(UserWarning, match="Position ids are not supported"):
        assert abs(row_nlls(model, loaded, rows[:1])[0] - row_nlls(model, loaded, rows)[0]) > 0.1


@pytest.mark.parametrize("count", [1, 6])
def test_decoding_continues_as_by_hand(prompted: tuple[LoadedBase, Any, list[Encoded]], count: int) -> None:
    """Token by token without a cache, alone and in a padded batch."""
    loaded, model, rows = prompted
    found = greedy(model, rows[:count], loaded.pad_token, 6).tolist()
    for row, tokens in zip(rows, found, strict=False):
        ids = list(row.prompt)
        for token in tokens:
            assert int(logits_by_hand(loaded, model, ids)[-1].argmax()) == token
            ids.append(token)
            if token in loaded.end_tokens:
                break


def test_switched_off_it_is_the_base_bit_for_bit(prompted: tuple[LoadedBase, Any, list[Encoded]]) -> None:
    loaded, model, rows = prompted
    batch = collate(rows, loaded.pad_token)
    with torch.no_grad(), model.disable_adapter():
        assert torch.equal(predict(model, batch), predict(loaded.model, batch))
        decoded = [greedy(one, rows, loaded.pad_token, 6) for one in (model, loaded.model)]
        assert torch.equal(*decoded)


def test_it_starts_from_the_texts_tokens_or_drawn_ones_without_touching_torchs_generator(workshop: Workshop) -> None:
    loaded = loaded_base(workshop.folder / "tiny")
    embedding = loaded.model.get_input_embeddings().weight
    ids = loaded.tokenizer("red", add_special_tokens=False)["input_ids"]
    random = torch.get_rng_state()
    made: list[Any] = [
        add_prompt(loaded, TOKENS, text="red"),
        *(add_prompt(loaded, TOKENS, seed=seed) for seed in (1, 1, 2)),
    ]
    assert torch.equal(random, torch.get_rng_state())
    text, one, again, other = (model.prompt_encoder["default"].embedding.weight for model in made)
    assert torch.equal(text, embedding[torch.tensor([ids[at % len(ids)] for at in range(TOKENS)])])
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert all(bool((embedding == row).all(dim=1).any()) for row in one)


def prompt_context(workshop: Workshop) -> Context:
    context = workshop.context()
    loaded = load_base(context.loaded.base)
    return replace(context, loaded=loaded, model=add_prompt(loaded, TOKENS))


def test_the_loop_trains_the_prompt_alone_and_resumes_exactly(workshop: Workshop, tmp_path: Path) -> None:
    fresh = prompt_context(workshop)
    assert {name: tuple(one.shape) for name, one in weights(fresh.model).items()} == {
        "prompt_encoder.default.embedding.weight": (TOKENS, 48)
    }
    (whole, _), _ = assert_exact_resume(lambda: prompt_context(workshop), lambda _: Recipe(), tmp_path)
    assert nll(whole, whole.examples) < nll(fresh, fresh.examples) - 0.1
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.loaded.model.parameters(), whole.loaded.model.parameters(), strict=True)
    )


def test_a_saved_prompt_loads_bit_for_bit_and_the_evaluator_scores_it(workshop: Workshop, tmp_path: Path) -> None:
    context = prompt_context(workshop)
    loaded, rows = context.loaded, list(context.examples[:4])
    save_adapter(context.model, tmp_path / "prompt", loaded.base.id)
    again = load_prompt(load_base(loaded.base), tmp_path / "prompt")
    assert same(weights(context.model), weights(again))
    assert json.loads((tmp_path / "prompt" / "adapter_config.json").read_text())["base_model_name_or_path"] == "tiny"
    evaluator = Evaluator(again, loaded.tokenizer, loaded.end_tokens, loaded.pad_token, "exact_match")
    scored = [one.score.nll * len(row.completion) for one, row in zip(evaluator.score(rows), rows, strict=True)]
    assert scored == pytest.approx(row_nlls(context.model, loaded, rows), abs=1e-4)


def test_what_cannot_be_a_prompt_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    loaded = loaded_base(workshop.folder / "tiny")
    with pytest.raises(ConfigInvalid, match="0 virtual tokens in a context of 256"):
        add_prompt(loaded, 0)
    with pytest.raises(ConfigInvalid, match="no token"):
        add_prompt(loaded, 2, text="")
    with pytest.raises(BaseUnusable, match="holds no tuned prompt"):
        load_prompt(loaded, tmp_path)
