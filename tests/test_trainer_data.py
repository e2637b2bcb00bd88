"""Rows, masks and batches: what is learned from, and what is not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.rows import Example, Message
from router.backends.embedded.chat import prompt_token_ids as engine_prompt_token_ids
from tests.trainer_base import colour_rows, encoded, loaded_base, make_trainable_base, varied_rows, write_rows
from trainer.batches import IGNORED, ShuffledBatches, collate, group_by_length, plan_epoch
from trainer.data import encode, halves, prompt_token_ids, read_evaluation, read_training, refuse_shared
from trainer.errors import BaseUnusable, CheckpointInvalid, DataInvalid, LeakFound
from trainer.model import LoadedBase

CONVERSATIONS = [
    (Message("user", "say red"),),
    (Message("system", "Be brief."), Message("user", "grüße aus köln 🙂")),
    (Message("user", "one"), Message("assistant", "two"), Message("user", " three \n")),
]
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    return loaded_base(make_trainable_base(tmp_path_factory.mktemp("base") / "tiny"))


def test_prompt_token_ids_trained_on_are_the_ids_the_engine_uses(loaded: LoadedBase) -> None:
    trained = [
        list(one.prompt)
        for one in encode(loaded.tokenizer, [Example(c, "yes") for c in CONVERSATIONS], loaded.end_tokens)
    ]
    assert trained == [engine_prompt_token_ids(loaded.tokenizer, conversation) for conversation in CONVERSATIONS]
    assert trained == prompt_token_ids(loaded.tokenizer, CONVERSATIONS)


def test_only_the_answer_and_the_end_of_the_turn_are_supervised(loaded: LoadedBase) -> None:
    examples = encoded(loaded, [("say red", "red"), ("say a much longer thing", "blue green")])
    batch = collate(examples, loaded.pad_token)
    for row, example in enumerate(examples):
        kept = batch.labels[row][batch.labels[row] != IGNORED].tolist()
        assert kept == loaded.tokenizer(example.answer)["input_ids"] + [loaded.tokenizer.eos_token_id]
        assert batch.input_ids[row][batch.labels[row] != IGNORED].tolist() == kept
        assert loaded.tokenizer.decode(example.prompt) == f"<|user|>{example.messages[0].content}<|end|><|assistant|>"


def test_what_a_template_writes_after_the_end_of_the_turn_is_not_supervised(loaded: LoadedBase) -> None:
    tokenizer = with_template(loaded, loaded.tokenizer.chat_template.replace("<|end|>", "<|end|>\n"))
    [example] = encode(tokenizer, [Example((Message("user", "hi"),), "yes")], loaded.end_tokens)
    assert example.completion[-1] == tokenizer.eos_token_id


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("", "no chat template"),
        ("{% for m in messages %}<|user|>{{ m.content }}{% endfor %}", "does not end the assistant's turn"),
        ("{{ messages | length }}{% for m in messages %}{{ m.content }}<|end|>{% endfor %}", "does not continue"),
    ],
)
def test_a_template_that_cannot_be_trained_through_is_refused(loaded: LoadedBase, template: str, message: str) -> None:
    with pytest.raises(BaseUnusable, match=message):
        encode(with_template(loaded, template), [Example((Message("user", "hi"),), "yes")], loaded.end_tokens)


def test_over_long_training_rows_are_left_out_whole_and_counted(loaded: LoadedBase, tmp_path: Path) -> None:
    rows = [("short", "yes"), ("very " * 60, "yes")]
    dataset = read_training(write_rows(tmp_path / "a.jsonl", rows), loaded.tokenizer, loaded.end_tokens, 40)
    assert [example.answer for example in dataset.examples] == ["yes"]
    assert dataset.skipped == {"longer than 40 tokens": 1}


def test_a_file_of_which_nothing_is_left_and_a_judge_that_is_too_long_are_refused(
    loaded: LoadedBase, tmp_path: Path
) -> None:
    file = write_rows(tmp_path / "a.jsonl", [("very " * 60, "yes")])
    with pytest.raises(DataInvalid, match="all 1 rows are longer"):
        read_training(file, loaded.tokenizer, loaded.end_tokens, 40)
    with pytest.raises(DataInvalid, match="1 of 1 rows are longer"):
        read_evaluation(file, "eval", loaded.tokenizer, loaded.end_tokens, 40)


def test_messages_and_gzip_rows_are_read(loaded: LoadedBase, tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "u"},
        {"role": "assistant", "content": "a"},
    ]
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps({"messages": turns}).encode()))
    dataset = read_training(file, loaded.tokenizer, loaded.end_tokens, 100)
    assert loaded.tokenizer.decode(dataset.examples[0].prompt) == "<|system|>s<|end|><|user|>u<|end|><|assistant|>"


def test_a_row_that_is_learned_from_cannot_judge(loaded: LoadedBase, tmp_path: Path) -> None:
    rows = colour_rows(6)
    learned = read_training(write_rows(tmp_path / "a.jsonl", rows), loaded.tokenizer, loaded.end_tokens, 100)
    judged_rows = [("new?", "yes"), (rows[3][0], "another answer"), (rows[4][0], "yes")]
    judge = write_rows(tmp_path / "b.jsonl", judged_rows)
    with pytest.raises(LeakFound, match=r"2 of 3 rows of eval also stand in train: row 2 'grey 3\?'; row 3"):
        refuse_shared(learned, read_evaluation(judge, "eval", loaded.tokenizer, loaded.end_tokens, 100))


def test_rows_of_one_prompt_judge_once(loaded: LoadedBase, tmp_path: Path) -> None:
    file = write_rows(tmp_path / "a.jsonl", [("b", "1"), ("a", "2"), ("b", "3")])
    dataset = read_evaluation(file, "eval", loaded.tokenizer, loaded.end_tokens, 100)
    assert [(one.messages[0].content, one.answer) for one in dataset.examples] == [("b", "1"), ("a", "2")]
    assert dataset.skipped == {"the same prompt again": 1}


def test_halves_share_no_row_and_a_rows_half_depends_on_itself_alone(loaded: LoadedBase, tmp_path: Path) -> None:
    def parts(count: int) -> tuple[set[str], set[str]]:
        file = write_rows(tmp_path / "a.jsonl", colour_rows(count))
        first, second = halves(read_evaluation(file, "eval", loaded.tokenizer, loaded.end_tokens, 100))
        return set(first.rows), set(second.rows)

    few, many = parts(40), parts(80)
    assert not few[0] & few[1]
    assert len(few[0] | few[1]) == 40
    assert few[0] <= many[0]
    assert few[1] <= many[1]


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 200), seed=st.integers(0, 9), epoch=st.integers(0, 3))
def test_an_epoch_holds_every_row_once_and_no_batch_over_its_tokens(
    lengths: list[int], batch_tokens: int, seed: int, epoch: int
) -> None:
    plan = plan_epoch(lengths, batch_tokens, seed=seed, epoch=epoch)
    assert sorted(index for batch in plan for index in batch) == list(range(len(lengths)))
    for batch in plan:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= batch_tokens
    assert plan == plan_epoch(lengths, batch_tokens, seed=seed, epoch=epoch)


@given(lengths=LENGTHS, batch_tokens=st.integers(1, 200))
def test_groups_go_from_short_to_long(lengths: list[int], batch_tokens: int) -> None:
    groups = group_by_length(range(len(lengths)), lengths, batch_tokens)
    assert [lengths[index] for group in groups for index in group] == sorted(lengths)


def test_a_restored_source_goes_on_with_the_same_batches(loaded: LoadedBase) -> None:
    def source() -> ShuffledBatches:
        return ShuffledBatches(encoded(loaded, varied_rows(20)), batch_tokens=60, seed=3, pad_token=0)

    one, other = source(), source()
    for _ in range(one.per_epoch + 2):
        one.next()
    other.restore(one.state())
    for _ in range(one.per_epoch):
        assert torch.equal(one.next().input_ids, other.next().input_ids)


def test_a_source_refuses_a_state_it_was_never_in(loaded: LoadedBase) -> None:
    source = ShuffledBatches(encoded(loaded, varied_rows(5)), batch_tokens=60, seed=3, pad_token=0)
    with pytest.raises(CheckpointInvalid):
        source.restore({"epoch": 0, "position": 1000})


def with_template(loaded: LoadedBase, template: str) -> Any:
    tokenizer = type(loaded.tokenizer).from_pretrained(loaded.base.folder)
    tokenizer.chat_template = template
    return tokenizer
