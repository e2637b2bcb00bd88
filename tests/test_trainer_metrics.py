"""Metrics beyond the text itself: token F1 by hand, choices and perplexity against brute force."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.errors import BadInput
from adapters.rows import Example, Message, read_examples
from tests.trainer_base import lora_model, make_trainable_base, varied_rows
from trainer import choices
from trainer.config import ScoredMetric
from trainer.data import Dataset, Encoded, encode
from trainer.errors import DataInvalid
from trainer.evaluate import Evaluator
from trainer.metrics import score_text, token_f1

TOLERANCE = 1e-4  # nats of a whole answer, float32 against float32 in another order of additions


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return lora_model(make_trainable_base(tmp_path_factory.mktemp("base") / "tiny"), effect=0.1)


def evaluator(model: Any, metric: ScoredMetric) -> Evaluator:
    loaded, lora = model
    return Evaluator(lora, loaded.tokenizer, loaded.end_tokens, loaded.pad_token, metric)


def asking(model: Any, rows: list[tuple[str, str, tuple[str, ...]]]) -> list[Encoded]:
    loaded, _ = model
    examples = [Example((Message("user", ask),), answer, offered) for ask, answer, offered in rows]
    return encode(loaded.tokenizer, examples, loaded.end_tokens)


def alone(model: Any, item: Encoded) -> dict[str, float]:
    """Brute force: each choice in a pass of its own, without cache or padding."""
    loaded, lora = model
    found = {}
    for text in item.choices:
        (one,) = encode(loaded.tokenizer, [Example(item.messages, text)], loaded.end_tokens)
        ids = torch.tensor([[*one.prompt, *one.completion]])
        with torch.no_grad():
            logprobs = lora(input_ids=ids).logits[0, len(one.prompt) - 1 : -1].log_softmax(-1)
        found[text] = float(logprobs.gather(1, torch.tensor(one.completion)[:, None]).sum())
    return found


VARIED = [
    ("say red", "red", ("red", "blue", "a much longer answer than the others")),
    ("a longer question about black and white, grey?", "no", ("yes", "no")),
    ("x", "日本語", ("日本語", "émoji 🙂", "q", "the quick brown fox")),
    ("what is it", "one", ("one", "two", "three", "four", "five")),
]


def test_choices_score_as_in_a_pass_of_their_own_without_cache_and_padding(model: Any) -> None:
    loaded, lora = model
    items = asking(model, VARIED)
    prepared = choices._prepare(loaded.tokenizer, loaded.end_tokens, items)
    found = choices.choice_logprobs(lora, prepared, loaded.pad_token)
    for item, logprobs in zip(items, found, strict=True):
        assert logprobs == pytest.approx(list(alone(model, item).values()), abs=TOLERANCE)


def test_the_choice_taken_is_the_likeliest_and_scores_one_where_it_is_the_answer(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In passes of many items and of one; every answer is asked for once, so both outcomes occur."""
    rows = [(ask, answer, offered) for ask, _, offered in VARIED for answer in offered]
    items = asking(model, rows)
    expected = [max(logprobs, key=lambda text: logprobs[text]) for item in items for logprobs in [alone(model, item)]]
    for limit in (choices.PAIR_TOKENS, 1):
        monkeypatch.setattr(choices, "PAIR_TOKENS", limit)
        scored = evaluator(model, "choice").score(items)
        assert [one.output for one in scored] == expected
        assert [one.score.score for one in scored] == [
            float(item.answer == best) for item, best in zip(items, expected, strict=True)
        ]


def test_one_token_choices_need_no_second_pass(model: Any) -> None:
    """A completion without the token that ends it, so that the prompt's last logits say everything."""
    loaded, lora = model
    item = choices.Choices((5, 6, 7), ("a", "b"), ((8,), (9,)))
    (found,) = choices.choice_logprobs(lora, [item], loaded.pad_token)
    with torch.no_grad():
        expected = lora(input_ids=torch.tensor([[5, 6, 7]])).logits[0, -1].log_softmax(-1)[[8, 9]]
    assert found == pytest.approx(expected.tolist(), abs=TOLERANCE)


def test_rows_without_choices_choose_among_the_answers_of_all_items(model: Any) -> None:
    items = asking(model, [("a?", "yes", ()), ("b?", "no", ()), ("c?", "yes", ()), ("d?", "p", ("p", "q"))])
    filled = choices.fill_choices(items)
    assert [one.choices for one in filled] == [("no", "p", "yes")] * 3 + [("p", "q")]


@pytest.mark.parametrize("answers", [["yes", "yes"], [str(number) for number in range(choices.MAX_CHOICES + 1)]])
def test_nothing_to_choose_and_too_much_to_choose_are_refused(model: Any, answers: list[str]) -> None:
    items = asking(model, [(f"{number}?", answer, ()) for number, answer in enumerate(answers)])
    with pytest.raises(DataInvalid, match=r"answers to choose among, expected 2 to 256"):
        evaluator(model, "choice").score(items)


def test_a_data_set_without_choices_is_refused_before_any_work_and_by_name(model: Any) -> None:
    items = tuple(asking(model, [("a?", "yes", ()), ("b?", "yes", ())]))
    dataset = Dataset("general", "0" * 64, items, {})
    choices.require_choices("exact_match", [dataset])
    with pytest.raises(DataInvalid, match=r"^general: choice: between 1 and 1 answers"):
        choices.require_choices("choice", [dataset])


def test_a_tie_is_not_right(model: Any) -> None:
    item = asking(model, [("a?", "yes", ("yes", "no"))])[0]
    assert not choices._chosen(item, [-1.0, -1.0]).right
    assert choices._chosen(item, [-1.0, -1.1]).right


def test_perplexity_scores_the_mean_probability_of_a_token_and_decodes_nothing(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1 / perplexity = exp(−NLL), from the NLL that test_trainer_evaluate checks against brute force."""
    items = asking(model, [(ask, answer, ()) for ask, answer in varied_rows(5)])
    monkeypatch.delattr("trainer.evaluate.greedy")
    scored = evaluator(model, "perplexity").score(items)
    assert [one.score.score for one in scored] == [math.exp(-one.score.nll) for one in scored]
    assert all(0 < one.score.score < 1 and one.output == "" for one in scored)


def test_scores_of_choice_and_perplexity_draw_no_random_numbers(model: Any) -> None:
    before = torch.get_rng_state()
    items = asking(model, VARIED)
    for metric in ("choice", "perplexity"):
        found = replace(evaluator(model, "choice"), metric=metric)
        assert found.score(items) == found.score(items)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("output", "answer", "score"),
    [
        # Words in common, each as often as both have it; worked by hand from SQuAD's definition.
        ("the cat sat", "A cat sat.", 1.0),  # articles, case and punctuation gone: cat sat | cat sat
        ("cat sat down", "cat sat", 0.8),  # precision 2/3, recall 1: 2 · 2 / (3 + 2)
        ("red red blue", "red blue blue", 2 / 3),  # red once and blue once: 2 · 2 / (3 + 3)
        ("no", "yes", 0.0),
        ("", "yes", 0.0),
        ("yes", "", 0.0),
        ("", "", 1.0),
        ("the", "a", 1.0),  # nothing but articles on both sides
        ("the", "cat", 0.0),
        ("U.S.A.", "usa", 1.0),  # punctuation goes without a space, as in SQuAD's script
        ("anthem", "them", 0.0),  # "an" is an article only where it is a word
    ],
)
def test_token_f1_is_that_of_squad(output: str, answer: str, score: float) -> None:
    assert score_text("token_f1", output, answer) == pytest.approx(score, abs=1e-12)


@given(st.text(), st.text())
def test_token_f1_is_symmetric_between_0_and_1_and_1_for_the_same_text(one: str, other: str) -> None:
    assert token_f1(one, other) == token_f1(other, one)
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, one) == 1


def test_a_row_may_name_its_choices_and_keeps_its_digest(tmp_path: Path) -> None:
    rows = [
        {"input": "q", "output": "b", "choices": ["a", "b"]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "choices": ["a", "c"]},
        {"input": "q", "output": "b"},
    ]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    found = read_examples(tmp_path / "rows.jsonl")
    assert [one.choices for one in found] == [("a", "b"), ("a", "c"), ()]
    assert len({one.digest for one in found}) == 1


@pytest.mark.parametrize(
    ("offered", "said"),
    [
        ("yes", "list of non-empty strings"),
        (["yes", 1], "list of non-empty strings"),
        (["yes", " "], "list of non-empty strings"),
        (["yes"], "two or more different strings, the answer among them"),
        (["yes", "yes"], "two or more different strings"),
        (["no", "maybe"], "the answer among them"),
        (["yes", "\ud800"], "half a surrogate pair"),
    ],
)
def test_choices_that_cannot_be_chosen_among_are_refused(tmp_path: Path, offered: object, said: str) -> None:
    row = {"input": "q", "output": "yes", "choices": offered}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(BadInput, match=f"line 1: 'choices' .*{said}"):
        read_examples(tmp_path / "rows.jsonl")
