"""Replay: quotas, which rows are remembered, and their share of the stream."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer_base import encoded, varied_rows
from tests.trainer_methods import Workshop, assert_quiet, make_workshop
from trainer.batches import Batch, BatchSource, ShuffledBatches
from trainer.data import Encoded
from trainer.distillation.teacher import completion_nlls
from trainer.errors import DataInvalid, LeakFound
from trainer.methods.recipe import Context
from trainer.methods.replay import Stream, build
from trainer.methods.settings import Replay, Selection
from trainer.past import Past
from trainer.rehearsal.memory import diverse, first_quota, hardest, quotas, shuffled
from trainer.rehearsal.mixed_batches import MixedBatches, memory_batches
from trainer.rehearsal.reader import Reader

SELECTIONS: tuple[Selection, ...] = ("random", "diverse", "difficult", "self")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("replay"))


@pytest.fixture
def context(workshop: Workshop, tmp_path: Path) -> Context:
    return workshop.context(past=workshop.past(rows=12, tasks=3), cache=tmp_path)


def make(**settings: Any) -> Replay:
    return Replay.model_validate(settings)


def kept(settings: Replay, context: Context) -> Mapping[str, list[Encoded]]:
    """The remembered rows by task."""
    (wrap,) = build(settings, context).wrap
    stream = getattr(wrap, "__self__")  # noqa: B009 - a bound method's object
    assert isinstance(stream, Stream)
    return {name: list(rows) for name, rows in stream.kept.items()}


def reader(context: Context) -> Reader:
    return Reader(context.loaded, context.model, context.seed, context.batch_tokens, context.observer)


@pytest.mark.parametrize("tasks", range(1, 21))
def test_quotas_share_the_capacity_exactly(tasks: int) -> None:
    for capacity in (1, 7, 100, 1000, 1001):
        found = quotas(capacity, tasks)
        assert found == [capacity // tasks + (1 if index < capacity % tasks else 0) for index in range(tasks)]
        assert sum(found) == capacity


@given(st.integers(1, 5000), st.integers(1, 60))
def test_no_quota_ever_grows_when_a_task_comes(capacity: int, tasks: int) -> None:
    assert all(new <= old for old, new in zip(quotas(capacity, tasks), quotas(capacity, tasks + 1), strict=False))
    assert quotas(capacity, tasks)[-1] == first_quota(capacity, tasks - 1)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_when_a_task_comes_every_other_keeps_the_first_of_what_it_had(
    workshop: Workshop, context: Context, selection: Selection
) -> None:
    settings = make(capacity=9, selection=selection)
    before: dict[str, list[Encoded]] = {}
    for tasks in (1, 2, 3):
        cache = context.cache / str(tasks)
        cache.mkdir()
        now = kept(settings, replace(context, past=Past(context.past.tasks[:tasks]), cache=cache))
        assert [len(rows) for rows in now.values()] == quotas(9, tasks)
        for name, rows in before.items():
            assert [one.row for one in now[name]] == [one.row for one in rows[: len(now[name])]]
        before = dict(now)


@pytest.mark.parametrize("selection", ["random", "difficult"])
def test_a_later_run_goes_on_with_what_the_run_before_had_kept(context: Context, selection: Selection) -> None:
    settings = make(capacity=6, selection=selection)
    left, cache = context.cache / "left", context.cache / "second"
    (left / "replay").mkdir(parents=True)
    cache.mkdir()
    first = build(settings, replace(context, past=Past(context.past.tasks[:1])))
    first.finish["replay"](context.model, left / "replay")
    had = kept(settings, replace(context, past=Past(context.past.tasks[:1])))["task 0"]
    for parameter in context.model.parameters():
        parameter.data.neg_()  # another start finds other rows difficult, another seed draws others
    later = replace(context, past=Past(context.past.tasks, left=left), cache=cache, seed=77)
    now = kept(settings, later)
    assert now["task 0"] == had[:2]
    (cache / "alone").mkdir()
    alone = replace(later, past=Past(context.past.tasks), cache=cache / "alone")
    assert kept(settings, alone)["task 0"] != had[:2]


def test_rows_and_the_bases_own_answers_may_be_replayed_side_by_side(context: Context) -> None:
    both = build(make(share=0.2), context).plus(build(make(share=0.25, selection="self"), context))
    mixed: BatchSource = sources(context)[0]
    for wrap in both.wrap:
        mixed = wrap(mixed)
    for _ in range(200):
        mixed.next()
    found = {name: finish(context.model, context.cache) for name, finish in both.finish.items()}
    assert found["replay_self"]["share"] == pytest.approx(0.25, abs=0.01)  # of all
    assert found["replay"]["share"] == pytest.approx(0.2, abs=0.01)  # of what the other leaves


@pytest.mark.parametrize("selection", SELECTIONS)
def test_the_same_seed_keeps_the_same_rows_and_building_leaves_no_trace(
    workshop: Workshop, context: Context, selection: Selection, tmp_path: Path
) -> None:
    settings = make(capacity=6, selection=selection)
    assert_quiet(context, lambda one: build(settings, one))
    (tmp_path / "again").mkdir()
    again = workshop.context(past=context.past, cache=tmp_path / "again")
    assert kept(settings, again) == kept(settings, context)


def test_what_is_kept_at_random_depends_on_the_seed_and_not_on_the_order_of_the_file() -> None:
    keys = [f"row {number}" for number in range(50)]
    order = [keys[index] for index in shuffled(keys, 1)]
    assert order == [keys[::-1][index] for index in shuffled(keys[::-1], 1)]
    assert order != [keys[index] for index in shuffled(keys, 2)]
    assert sorted(order) == sorted(keys)


def test_a_small_task_gives_all_it_has_and_the_rest_of_its_quota_stays_unused(context: Context) -> None:
    tasks = (replace(context.past.tasks[0], examples=context.past.tasks[0].examples[:2]), *context.past.tasks[1:])
    now = kept(make(capacity=12), replace(context, past=Past(tasks)))
    assert [len(rows) for rows in now.values()] == [2, 4, 4]


def test_hardest_takes_turns_with_random_and_puts_the_top_two_percent_last() -> None:
    losses = [float(number) for number in range(100)]  # the noisy two are 99 and 98
    order = hardest(losses, shuffled([str(number) for number in range(100)], 0))
    assert sorted(order) == list(range(100))
    assert order[-2:] == [98, 99]
    assert order[0] == 97
    assert {97, 96, 95, 94, 93} <= set(order[:10])
    assert min(order[:10]) < 90


def test_difficult_rows_are_those_of_the_highest_mean_token_loss_under_the_start(context: Context) -> None:
    examples = context.past.tasks[0].examples
    nlls = completion_nlls(context.model, examples, 4096, 0, context.observer)
    worst = max(range(len(examples)), key=lambda index: float(nlls[index].mean()))
    assert reader(context).rank(examples, "difficult", 4)[0] == worst


def test_diverse_takes_one_row_of_each_group_before_a_second_of_any() -> None:
    draw = np.random.default_rng(0)
    centres = np.eye(8, dtype=np.float32)[:4] * 3
    points = np.concatenate([centre + 0.01 * draw.standard_normal((10, 8)) for centre in centres]).astype(np.float32)
    order = diverse(points, 4, list(range(40)), seed=0)
    assert {index // 10 for index in order[:4]} == {0, 1, 2, 3}
    assert sorted(order) == list(range(40))


def test_diverse_takes_the_row_nearest_its_centroid_and_bears_equal_rows() -> None:
    angles = np.array([0.0, 0.1, 0.3, 1.5, 1.5, 1.5])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # Means by hand: of the first three unit vectors the direction is 0.133, nearest is 0.1; the others are one point.
    assert set(diverse(points, 2, list(range(6)), seed=0)[:2]) == {1, 3}
    assert sorted(diverse(points, 6, list(range(6)), seed=0)) == list(range(6))


def test_a_prefix_of_a_diverse_selection_is_diverse() -> None:
    angles = np.radians([0, 0, 0, 0, 10, 10, 10, 20, 20, 90])
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    # The largest group first, then by hand the farthest from those chosen: 90°, 20° (from 0°), 10°.
    assert diverse(points, 4, list(range(10)), seed=0)[:4] == [0, 9, 7, 4]


def test_embeddings_are_the_bases_and_do_not_depend_on_padding(context: Context) -> None:
    examples = context.past.tasks[0].examples
    together = reader(context).embed_prompts(examples)
    for example, found in zip(examples, together, strict=True):
        with torch.no_grad(), context.model.disable_adapter():
            hidden = context.loaded.model.model(torch.tensor([example.prompt])).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(found, hidden.numpy(), rtol=0, atol=1e-5)  # float32, other order of sums


def test_self_rows_are_what_the_base_writes_with_the_end_of_its_turn(context: Context) -> None:
    rows = [one for rows in kept(make(capacity=6, selection="self"), context).values() for one in rows]
    assert len(rows) == 6
    by_prompt = {one.prompt: one for task in context.past.tasks for one in task.examples}
    with torch.no_grad(), context.model.disable_adapter():
        for row in rows:
            known = by_prompt[row.prompt]
            assert (row.row, row.messages) == (known.row, known.messages)
            ids = list(row.prompt)
            for token in row.completion:  # greedy by hand, without a cache of keys
                assert int(context.model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
                ids.append(token)
            ends = [token in context.loaded.end_tokens for token in row.completion]
            assert not any(ends[:-1])


def test_self_asks_the_anchors_where_there_are_any(context: Context) -> None:
    anchors = tuple(encoded(context.loaded, varied_rows(40)[36:]))
    now = kept(make(capacity=3, selection="self"), replace(context, past=replace(context.past, anchors=anchors)))
    assert {name: len(rows) for name, rows in now.items()} == {"anchors": 3}
    assert {row.row for row in now["anchors"]} <= {one.row for one in anchors}


def test_an_end_token_closes_what_the_base_wrote_and_padding_is_cut(context: Context) -> None:
    end = min(context.loaded.end_tokens)
    assert reader(context)._ended([5, 6, end, end, end]) == (5, 6, end)
    assert reader(context)._ended([5, 6, 7]) == (5, 6, 7)


@pytest.mark.parametrize("selection", SELECTIONS)
def test_rows_that_an_evaluation_reads_are_refused(context: Context, selection: Selection) -> None:
    judged = frozenset({context.past.tasks[1].examples[0].row})
    with pytest.raises(LeakFound, match="1 rows to replay"):
        build(make(selection=selection), replace(context, judged=judged))


@pytest.mark.parametrize("selection", SELECTIONS)
def test_without_anything_to_remember_replay_says_so(context: Context, selection: Selection) -> None:
    with pytest.raises(DataInvalid, match="nothing to remember"):
        build(make(selection=selection), replace(context, past=Past()))


def sources(context: Context) -> tuple[ShuffledBatches, ShuffledBatches]:
    new = ShuffledBatches(context.examples, batch_tokens=128, seed=1, pad_token=0)
    rows = [one for task in context.past.tasks for one in task.examples]
    return new, memory_batches(rows, batch_tokens=128, seed=1, pad_token=0)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9])
def test_the_share_of_the_streams_tokens_is_never_off_by_more_than_a_micro_batch(
    context: Context, share: float
) -> None:
    new, memory = sources(context)
    mixed = MixedBatches(new, memory, share)
    remembered = {one.row for task in context.past.tasks for one in task.examples}
    total = replayed = 0
    for _ in range(200):
        batch = mixed.next()
        total += batch.tokens
        replayed += batch.tokens if set(batch.rows) <= remembered else 0
        assert -128 <= share * total - replayed <= share * 128
        assert mixed.replayed_share == replayed / total


def same(one: Batch, two: Batch) -> bool:
    return one.rows == two.rows and torch.equal(one.input_ids, two.input_ids) and torch.equal(one.labels, two.labels)


def test_a_stream_put_back_to_any_point_goes_on_with_the_same_batches(context: Context) -> None:
    def fresh() -> MixedBatches:
        new, memory = sources(context)
        inner = MixedBatches(new, memory, 0.3)
        return MixedBatches(inner, sources(context)[1], 0.2)  # one in another: their states do not mix

    whole = fresh()
    for _ in range(40):
        state = dict(whole.state())
        assert all(isinstance(value, int) for value in state.values())
        again = fresh()
        again.restore(state)
        assert again.state() == state
        assert same(whole.next(), again.next())
        assert again.state() == whole.state()


def test_a_memory_of_a_few_tokens_still_fills_its_micro_batches(context: Context) -> None:
    row = context.past.tasks[0].examples[0]
    batch = memory_batches([row], batch_tokens=128, seed=0, pad_token=0).next()
    assert 128 - len(row) < batch.tokens <= 128
    assert set(batch.rows) == {row.row}


def test_the_report_counts_rows_and_the_share_that_was_replayed(context: Context) -> None:
    recipe = build(make(capacity=7, share=0.25), context)
    mixed = recipe.wrap[0](sources(context)[0])
    batches = [mixed.next() for _ in range(40)]
    new = {one.row for one in context.examples}
    replayed = sum(one.tokens for one in batches if not set(one.rows) <= new)
    found = recipe.finish["replay"](context.model, context.cache)
    assert found["rows"] == {"task 0": 3, "task 1": 2, "task 2": 2}
    assert found["share"] == round(replayed / sum(one.tokens for one in batches), 4)
    assert found["share"] == pytest.approx(0.25, abs=0.03)
