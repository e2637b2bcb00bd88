"""Teachers: that they are frozen and leave no trace, and that the divergences from them are what they say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor

from adapters.base import find_base
from adapters.rows import sha256_file
from tests.trainer_base import Files, encoded, loaded_base, lora_model, make_files, varied_rows, write_rows
from tests.trainer_methods import Silent, Workshop, assert_quiet, make_workshop, same, train_steps, weights
from trainer.batches import IGNORED, Batch, collate
from trainer.config import TrainConfig, read_config
from trainer.data import Encoded
from trainer.distillation.cache import SparseTeacher
from trainer.distillation.divergence import supervised_logits, token_kl, without_targets
from trainer.distillation.teacher import BaseTeacher, StartTeacher, Teacher
from trainer.errors import Interrupted
from trainer.folder import RunFolder
from trainer.methods import distill, kl
from trainer.methods.build import build_recipe
from trainer.methods.recipe import Context, Recipe
from trainer.methods.settings import Distill, Kl, MethodSettings, parse_method
from trainer.model import LoraShape, add_lora
from trainer.objective import Objective, predict
from trainer.past import Past, PastTask
from trainer.run import Run, prepare

STARTED = Past(start=Path("somewhere"))  # what lies there is in the model already


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("distill"))


@pytest.fixture
def context(workshop: Workshop, tmp_path: Path) -> Context:
    made = workshop.context(cache=tmp_path, past=STARTED, effect=0.3)
    return replace(made, examples=tuple(encoded(made.loaded, varied_rows(8))))


def distilling(**settings: Any) -> Distill:
    return Distill.model_validate(settings)


def near_base(**settings: Any) -> Kl:
    return Kl.model_validate(settings)


def batch_of(context: Context) -> Batch:
    return collate(context.examples, context.loaded.pad_token)


def move(model: Any) -> None:
    """Change every trainable weight."""
    draw = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn(parameter.shape, generator=draw)


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


def kl_by_hand(teacher: Tensor, student: Tensor, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Mean over supervised positions of Σ_v p (log p − log q) in float64, position by position."""
    found = []
    labels = batch.labels[:, -student.shape[1] :]
    for line, at in (labels != IGNORED).nonzero().tolist():
        p, q = ((one[line, at].double() / temperature).softmax(-1) for one in (teacher, student))
        found.append((p * (p.log() - q.log())).sum())
    return torch.stack(found).mean()


def with_dropout(workshop: Workshop, dropout: float) -> Any:
    loaded = loaded_base(workshop.folder / "tiny")
    torch.manual_seed(1)
    model: Any = add_lora(loaded, LoraShape(4, 8, ("all-linear",), dropout))
    move(model)
    return model


def test_a_live_teacher_costs_nothing_where_the_student_still_is_the_teacher(context: Context) -> None:
    (penalty,) = distill.build(distilling(), context).penalties
    context.model.train()
    batch = batch_of(context)
    value = penalty(context.model, batch, predict(context.model, batch))
    assert float(value.detach()) == 0.0
    found = gradients(context.model, value)
    assert max(float(one.abs().max()) for one in found.values()) < 1e-7  # float32: Σ p is 1 to rounding


@pytest.mark.parametrize("start", [True, False])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_live_value_and_gradient_are_those_of_two_separate_models(
    workshop: Workshop, context: Context, temperature: float, start: bool
) -> None:
    past = STARTED if start else Past()
    settings = distilling(weight=0.7, temperature=temperature)
    (penalty,) = distill.build(settings, replace(context, past=past)).penalties
    _, other = lora_model(workshop.folder / "tiny", effect=0.3 if start else 0.0)
    move(context.model)
    batch = batch_of(context)
    context.model.train()
    loss = Objective((penalty,))(context.model, batch)
    found = gradients(context.model, loss.total)
    with torch.no_grad():
        teacher = predict(other.eval(), batch)
    student = predict(context.model, batch)
    expected = 0.7 * temperature**2 * kl_by_hand(teacher, student, batch, temperature)
    assert loss.parts["distill"] == pytest.approx(float(expected.detach()), rel=1e-4)  # float32 against float64
    plain = Objective()(context.model, batch).total
    reference = gradients(context.model, plain + expected.float())
    assert found.keys() == reference.keys()
    for name, one in found.items():
        torch.testing.assert_close(one, reference[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", [StartTeacher, BaseTeacher])
def test_a_teacher_has_no_dropout_and_leaves_mode_random_numbers_and_weights_alone(
    workshop: Workshop, kind: type[StartTeacher] | type[BaseTeacher]
) -> None:
    model = with_dropout(workshop, 0.5)
    examples = encoded(loaded_base(workshop.folder / "tiny"), varied_rows(5))
    batch = collate(examples, 0)
    teacher: Teacher = kind(model)
    model.train()
    next(model.modules()).get_submodule("base_model").training = False  # a mode of its own, to be left as it is
    modes = {name: module.training for name, module in model.named_modules()}
    before, random = weights(model), torch.get_rng_state()
    first = teacher(batch)
    assert torch.equal(first, teacher(batch))
    assert not first.requires_grad
    assert torch.equal(random, torch.get_rng_state())
    assert modes == {name: module.training for name, module in model.named_modules()}
    assert same(before, weights(model))
    move(model)
    assert torch.equal(first, teacher(batch))


def test_the_base_is_the_teacher_of_kl_and_its_value_is_the_divergence(workshop: Workshop, context: Context) -> None:
    (penalty,) = kl.build(near_base(weight=0.25), context).penalties
    batch = batch_of(context)
    with torch.no_grad():
        base = loaded_base(workshop.folder / "tiny").model
        teacher = predict(base, batch)
        student = predict(context.model, batch)
        expected = 0.25 * kl_by_hand(teacher, student, batch)
        assert float(penalty(context.model, batch, student)) == pytest.approx(float(expected), rel=1e-5)


def test_non_target_kl_is_over_the_other_tokens_and_leaves_the_target_free(context: Context) -> None:
    (penalty,) = kl.build(near_base(weight=1.0, non_target=True), context).penalties
    batch = batch_of(context)
    with torch.no_grad():
        logits = predict(context.model, batch)
        with context.model.disable_adapter():
            base = predict(context.model, batch)
    by_hand = []
    for line, at in (batch.labels[:, -logits.shape[1] :] != IGNORED).nonzero().tolist():
        target = int(batch.labels[line, at - logits.shape[1]])
        others = [token for token in range(logits.shape[2]) if token != target]
        p, q = (one[line, at].double().softmax(-1)[others] for one in (base, logits))
        p, q = p / p.sum(), q / q.sum()
        by_hand.append((p * (p / q).log()).sum())
    logits.requires_grad_()
    value = penalty(context.model, batch, logits)
    assert float(value.detach()) == pytest.approx(float(torch.stack(by_hand).mean()), rel=1e-5)
    (slope,) = torch.autograd.grad(value, logits)
    labels = batch.labels[:, -logits.shape[1] :]
    lines, columns = (labels != IGNORED).nonzero(as_tuple=True)
    assert float(slope[lines, columns, labels[lines, columns]].abs().max()) == 0.0
    assert float(slope.abs().max()) > 0


def test_a_certain_teacher_gives_no_nan() -> None:
    certain = torch.tensor([[1000.0, 0.0, -1000.0]])
    assert float(token_kl(certain, certain)[0]) == 0.0
    assert float(token_kl(without_targets(certain, torch.tensor([0])), certain)[0]) < 1e4


class Fixed:
    """A teacher whose logits are given: the same (positions, vocabulary) for every row."""

    digest = "fixed"

    def __init__(self, logits: Tensor) -> None:
        self._logits = logits
        self.asked = 0

    def __call__(self, batch: Batch) -> Tensor:
        self.asked += 1
        return self._logits[-batch.predicted :].expand(len(batch.labels), -1, -1)


def one_row(completion: int) -> Encoded:
    return Encoded("row", (7, 8), tuple(range(10, 10 + completion)), (), "")


def sparse(teacher: Teacher, seed: int, *, draws: int = 8, temperature: float = 1.0) -> SparseTeacher:
    return SparseTeacher(teacher, temperature=temperature, draws=draws, seed=seed, pad_token=0)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("away", [0.0, 0.5])
def test_the_mean_of_the_cached_estimate_and_of_its_gradient_are_the_dense_ones(
    temperature: float, away: float
) -> None:
    """400 caches that differ by their seed; value, and gradient along 12 fixed directions, within 3 standard errors
    of the dense KL's (0 where the student is the teacher). The fp16 of the kept log-probabilities adds ≤ 1e-3.
    """
    torch.manual_seed(0)
    teacher = torch.randn(5, 20) * 1.5
    student = (teacher + away * torch.randn(5, 20)).requires_grad_()
    directions = torch.randn(12, 5, 20)
    batch = collate([one_row(5)], 0)
    dense = temperature**2 * token_kl(teacher, student, temperature).mean()
    (slope,) = torch.autograd.grad(dense, student)
    values, along = [], []
    for seed in range(400):
        penalty = distill.Cached(sparse(Fixed(teacher), seed, temperature=temperature), 1.0, temperature)
        value = penalty(None, batch, student[None])
        (found,) = torch.autograd.grad(value, student)
        values.append(value.detach())
        along.append((directions * (found - slope)).sum(dim=(1, 2)))
    error, spread = torch.stack(along).mean(0), torch.stack(along).std(0) / 400**0.5
    assert float((error.abs() / spread).max()) < 3
    assert float(torch.stack(along).std()) > 0.01  # the estimate is noisy: its mean being right is no accident
    gap = abs(float(torch.stack(values).mean() - dense.detach()))
    assert gap < 3 * float(torch.stack(values).std()) / 400**0.5 + 1e-3


def test_draws_follow_the_row_whatever_the_order_the_batch_and_the_side_of_the_padding(context: Context) -> None:
    teacher = StartTeacher(context.model)
    filled = sparse(teacher, 1)
    filled.fill(context.examples, 4096, lambda done: None)
    late = sparse(teacher, 1)
    whole = batch_of(context)
    expected = filled.look_up(whole)
    found = late.look_up(whole)
    assert late.met_late == len({(*one.prompt, *one.completion) for one in context.examples})
    assert filled.met_late == 0
    assert torch.equal(found.ids, expected.ids)
    parts = [filled.look_up(collate([one], 0)) for one in context.examples]
    assert torch.equal(torch.cat([one.ids for one in parts]), expected.ids)
    assert torch.equal(filled.look_up(turned(whole)).ids, expected.ids)
    assert not torch.equal(sparse(teacher, 2).look_up(whole).ids, expected.ids)


def turned(batch: Batch) -> Batch:
    """The same rows, padded on the right."""
    gaps = [int(one) for one in (batch.attention_mask == 0).sum(dim=1)]
    ids, mask, labels = (
        torch.stack([row.roll(-gap) for row, gap in zip(one, gaps, strict=True)])
        for one in (batch.input_ids, batch.attention_mask, batch.labels)
    )
    return Batch(ids, mask, labels, batch.rows)


def test_draws_stand_at_their_own_positions_and_skip_dropped_ones() -> None:
    logits = torch.full((6, 30), -50.0)
    logits[torch.arange(6), torch.arange(6) + 20] = 50.0  # position t of a completion of 6 has token 20 + t for sure
    cache = sparse(Fixed(logits), 0, draws=3)
    cache.fill([one_row(6)], 64, lambda done: None)
    row = replace(one_row(6), dropped=frozenset({0, 3}))
    drawn = cache.look_up(collate([row, one_row(6)], 0))
    assert drawn.ids.tolist() == [[20 + at] * 3 for at in (1, 2, 4, 5, 0, 1, 2, 3, 4, 5)]
    assert drawn.logprobs.abs().max() == 0
    assert (drawn.ids.dtype, drawn.logprobs.dtype) == (torch.int32, torch.float16)
    assert cache.met_late == 0


def test_the_same_prompt_with_another_answer_is_another_row() -> None:
    cache = sparse(Fixed(torch.randn(6, 30)), 0)
    cache.fill([one_row(6)], 64, lambda done: None)
    cache.look_up(collate([one_row(4)], 0))
    assert (cache.met_late, cache.positions) == (1, 10)


def test_the_cache_is_read_from_disk_and_the_teacher_not_again(context: Context, tmp_path: Path) -> None:
    first = Fixed(torch.randn(6, 30))
    held = sparse(first, 0)
    held.fill([one_row(6)], 64, lambda done: None)
    held.save(tmp_path / "kept.safetensors")
    second = Fixed(torch.zeros(6, 30))
    again = sparse(second, 0)
    again.load(tmp_path / "kept.safetensors")
    batch = collate([one_row(6)], 0)
    assert torch.equal(again.look_up(batch).ids, held.look_up(batch).ids)
    assert torch.equal(again.look_up(batch).logprobs, held.look_up(batch).logprobs)
    assert (first.asked, second.asked) == (1, 0)
    distill.build(distilling(teacher="cached"), context)
    distill.build(distilling(teacher="cached", temperature=2), context)
    assert len(list(context.cache.glob("distill-*.safetensors"))) == 2


def test_the_teachers_digest_tells_starts_apart(context: Context) -> None:
    before = StartTeacher(context.model)
    move(context.model)
    assert before.digest != StartTeacher(context.model).digest
    assert BaseTeacher(context.model).digest != before.digest


METHODS = (distilling(weight=0), distilling(weight=0, teacher="cached"), near_base(weight=0))


@pytest.mark.parametrize("settings", METHODS)
def test_weight_0_changes_no_bit_of_a_run(context: Context, settings: Distill | Kl) -> None:
    start = weights(context.model)
    train_steps(context, Recipe(), 3)
    plain = weights(context.model)
    context.model.load_state_dict(start, strict=False)
    losses = train_steps(context, build_recipe([settings], context), 3)
    assert same(weights(context.model), plain)
    context.model.load_state_dict(start, strict=False)
    heavy = settings.model_copy(update={"weight": 1.0})
    assert train_steps(context, build_recipe([heavy], context), 3) != losses
    assert not same(weights(context.model), plain)


@pytest.mark.parametrize("settings", [distilling(), distilling(teacher="cached"), near_base()])
def test_building_leaves_no_trace(context: Context, settings: Distill | Kl) -> None:
    assert_quiet(context, lambda one: build_recipe([settings], one))


def test_a_heavy_teacher_holds_the_student_where_it_was(context: Context) -> None:
    def moved(methods: Sequence[Distill]) -> float:
        made = replace(context, model=lora_model(context.loaded.base.folder, effect=0.3)[1])
        recipe = build_recipe(methods, made)
        train_steps(made, recipe, 20, accumulation=1)
        batch = batch_of(made)
        with torch.no_grad():
            return float(kl_by_hand(StartTeacher(context.model)(batch), predict(made.model, batch), batch))

    free = moved(())
    assert moved([distilling(weight=100)]) < 0.5 * free
    assert moved([distilling(weight=100, teacher="cached")]) < 0.5 * free


def test_supervised_logits_come_row_by_row(context: Context) -> None:
    batch = batch_of(context)
    logits = torch.arange(batch.predicted, dtype=torch.float32)[None, :, None].expand(len(batch.labels), -1, 2)
    found = supervised_logits(logits, batch)[:, 0].tolist()
    assert found == [float(at) for row in batch.labels[:, -batch.predicted :] for at, one in enumerate(row) if one >= 0]


class Stopper(Silent):
    """Asks to stop from the question number `patience` on."""

    def __init__(self, patience: int) -> None:
        self._patience = patience

    @property
    def stop_requested(self) -> bool:  # type: ignore[override]  # an attribute elsewhere
        self._patience -= 1
        return self._patience < 0


def make_run(files: Files, out: Path, observer: Silent, methods: Sequence[str], past: Path) -> Run:
    values = {**files.values, "out": out, "methods": methods, "past": [past], "max_steps": 10, "batch_tokens": 256}
    config = read_config(TrainConfig, values)
    base = find_base(config.base)
    digests = {name: sha256_file(file) for name, file in config.files.items()}
    return prepare(config, base, config.identity(base.fingerprint, digests), RunFolder(out), observer)


def train(run: Run) -> dict[str, Tensor]:
    run.training.run(run.candidates.keep, lambda position: None)
    return weights(run.model)


def test_a_run_with_replay_and_a_cached_teacher_goes_on_bit_for_bit(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    past = write_rows(tmp_path / "before.jsonl", varied_rows(30))
    methods = ("replay:share=0.3,selection=self,capacity=8", "distill:teacher=cached,draws=4", "masking:threshold=1e9")
    whole = make_run(files, tmp_path / "whole", Silent(), methods, past)
    expected = train(whole)
    halted = tmp_path / "halted"
    for patience in (0, 4, 6):
        with pytest.raises(Interrupted):
            train(make_run(files, halted, Stopper(patience), methods, past))
    last = make_run(files, halted, Silent(), methods, past)
    assert same(train(last), expected)
    found, wanted = (run.training.finish_methods(run.folder.candidate(10)) for run in (last, whole))
    assert found["replay_self"]["share"] == wanted["replay_self"]["share"] == pytest.approx(0.3, abs=0.1)
    assert wanted["distill"]["rows_read_late"] == 8
    assert found["masking"]["kept_share"] == 1.0


def test_replay_distillation_and_a_penalty_on_the_update_train_together(tmp_path: Path) -> None:
    files = make_files(tmp_path)
    past = write_rows(tmp_path / "before.jsonl", varied_rows(30))
    run = make_run(files, tmp_path / "out", Silent(), ("replay", "kl:weight=0.1", "distill", "ewc:sequences=8"), past)
    before = weights(run.model)
    assert not same(train(run), before)
    assert [penalty.name for penalty in run.training.recipe.penalties] == ["kl", "distill", "ewc"]


@pytest.mark.parametrize(
    "method",
    [
        "distill:teacher=cached",
        "masking",
        "replay:selection=diverse",
        "replay:selection=difficult",
        "replay:selection=self",
    ],
)
def test_what_reads_all_rows_before_the_first_step_can_be_interrupted(context: Context, method: str) -> None:
    settings = TypeAdapter(MethodSettings).validate_python(parse_method(method))
    past = Past(tasks=(PastTask("before", context.examples),), start=STARTED.start)
    with pytest.raises(Interrupted, match="while reading"):
        build_recipe([settings], replace(context, observer=Stopper(0), past=past))
    assert not list(context.cache.iterdir())
