"""EWC on ΔW: the ends of λ in whole trainings, exact resume, whose rows it protects, what it reports."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.trainer_ewc import EVERY, ewc, fresh, moved
from tests.trainer_methods import Workshop, assert_exact_resume, assert_quiet, make_workshop, same, train_steps, weights
from trainer.batches import ShuffledBatches
from trainer.distillation.drift import Drift
from trainer.errors import ConfigInvalid
from trainer.loop import train
from trainer.lora import lora_layers, snapshot
from trainer.methods.quadratic import QuadraticPenalty, laplace_weight
from trainer.methods.recipe import Context, Recipe
from trainer.objective import Objective
from trainer.past import Past
from trainer.schedule import Budget as StepBudget
from trainer.schedule import LearningRate


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("ewc"))


@pytest.mark.parametrize("name", EVERY)
def test_weight_0_is_bit_for_bit_a_run_without_the_method(workshop: Workshop, tmp_path: Path, name: str) -> None:
    plain, with_method = (fresh(workshop, tmp_path / which) for which in ("plain", "with"))
    plain_losses = train_steps(plain, Recipe())
    assert train_steps(with_method, EVERY[name](0.0)(with_method)) == plain_losses
    assert same(weights(plain.model), weights(with_method.model))


@pytest.mark.parametrize("name", EVERY)
def test_building_is_quiet_and_a_weight_above_0_acts(workshop: Workshop, tmp_path: Path, name: str) -> None:
    context, plain = fresh(workshop, tmp_path), fresh(workshop, tmp_path)
    recipe = assert_quiet(context, EVERY[name](100.0))
    train_steps(context, recipe)
    train_steps(plain, Recipe())
    assert not same(weights(plain.model), weights(context.model))


@pytest.mark.parametrize("name", ["ewc", "l2"])
def test_a_growing_weight_takes_the_run_back_to_its_reference(workshop: Workshop, tmp_path: Path, name: str) -> None:
    # In the limit nothing moves where F > 0. 40 steps of Adam that fade to 0; Ω falls with every λ, at the end to 1e-3
    # of the free run's.
    omegas = []
    for weight in (0.0, 1e2, 1e5):
        context = fresh(workshop, tmp_path)
        [penalty] = EVERY[name](weight)(context).penalties
        assert isinstance(penalty, QuadraticPenalty)
        from_start = QuadraticPenalty("by hand", penalty.importance, snapshot(context.model), 1.0)
        train_to_rest(context, penalty)
        omegas.append(from_start.measure(context.model))
    assert omegas == sorted(omegas, reverse=True)
    assert omegas[-1] < 1e-3 * omegas[0]


@pytest.mark.parametrize("name", EVERY)
def test_at_its_start_a_penalty_is_0(workshop: Workshop, tmp_path: Path, name: str) -> None:
    """1e-6 of what it would charge for the whole of ΔW, for what float32 leaves of sB·A − sB·A."""
    context = fresh(workshop, tmp_path)
    [penalty] = EVERY[name](1.0)(context).penalties
    assert isinstance(penalty, QuadraticPenalty)
    at_start = penalty.measure(context.model)
    for layer in lora_layers(context.model):
        layer.b.data.zero_()
    assert at_start < 1e-6 * penalty.measure(context.model)


def train_to_rest(context: Context, penalty: QuadraticPenalty) -> None:
    model, token = context.model, context.loaded.pad_token
    batches = ShuffledBatches(context.examples, batch_tokens=512, seed=0, pad_token=token)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    rate = LearningRate(0.01, "linear", 0.0)
    for _ in train(model, batches, Objective([penalty]), optimizer, budget=StepBudget(25), learning_rate=rate):
        pass


@pytest.mark.parametrize("name", EVERY)
def test_a_resumed_run_is_the_uninterrupted_one(workshop: Workshop, tmp_path: Path, name: str) -> None:
    assert_exact_resume(lambda: fresh(workshop, tmp_path / "cache"), EVERY[name](10.0), tmp_path / "states")


def test_a_resumed_run_does_not_measure_again(workshop: Workshop, tmp_path: Path) -> None:
    said: list[str] = []
    context = fresh(workshop, tmp_path, observer=Listener(said))
    ewc()(context)
    assert len(said) == 1
    ewc()(context)
    assert len(said) == 1


class Listener:
    stop_requested = False

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def say(self, text: str) -> None:
        self._said.append(text)

    def advance(self, what: str, done: float, total: float, note: str = "") -> None:
        """Nothing."""


def test_the_weight_is_laplaces(workshop: Workshop, tmp_path: Path) -> None:
    # T_old / T_new of unique supervised tokens, not of the six rows measured; 1 where the base is the reference.
    context = fresh(workshop, tmp_path / "one")
    [penalty] = ewc(2.0)(context).penalties
    assert isinstance(penalty, QuadraticPenalty)
    assert penalty.weight == 2.0 * context.past.tasks[0].supervised / context.supervised
    from_base = fresh(workshop, tmp_path / "two", start=False, effect=0.0)
    [penalty] = ewc(2.0)(from_base).penalties
    assert isinstance(penalty, QuadraticPenalty)
    assert penalty.weight == 2.0
    assert penalty.reference == {}
    assert laplace_weight(3.0, 10.0, 5.0) == 6.0


def test_anchors_speak_for_the_base_where_there_is_no_past(workshop: Workshop, tmp_path: Path) -> None:
    anchors = workshop.past().tasks[0].examples
    context = workshop.context(past=Past(anchors=anchors), cache=tmp_path, effect=0.0)
    recipe = ewc()(context)
    moved(context)
    found = recipe.finish["ewc"](context.model, tmp_path)
    assert found["sequences"] == 6
    assert found["old_tokens"] == found["new_tokens"] == context.supervised


@pytest.mark.parametrize("name", ["ewc", "ewc_factors", "l2"])
def test_without_rows_to_protect_it_is_refused(workshop: Workshop, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigInvalid, match=f"{name} needs rows to protect, found no past task and no anchors"):
        EVERY[name]()(workshop.context(cache=tmp_path))
    anchors = workshop.past().tasks[0].examples
    with pytest.raises(ConfigInvalid, match="found anchors and a start, but no past task"):
        EVERY[name]()(workshop.context(past=Past(anchors=anchors, start=tmp_path), cache=tmp_path))


@pytest.mark.parametrize("name", EVERY)
def test_the_report_has_the_price_beside_the_measured_kl(workshop: Workshop, tmp_path: Path, name: str) -> None:
    context = fresh(workshop, tmp_path)
    recipe = EVERY[name](3.0)(context)
    task = context.past.tasks[0]
    drift = Drift(context.model, task.examples, context.loaded.pad_token, 64)
    moved(context, 0.01)
    found = recipe.finish[name](context.model, tmp_path)
    [penalty] = recipe.penalties
    assert isinstance(penalty, QuadraticPenalty)
    assert found["sequences"] == 6
    assert (found["old_tokens"], found["new_tokens"]) == (task.supervised, context.supervised)
    assert found["weight"] == penalty.weight
    assert found["measured_on"] == "task 0"
    assert found["omega"] == penalty.measure(context.model) > 0
    assert found["measured_kl"] == pytest.approx(drift.measure(context.model), rel=1e-4)
    assert found["omega_per_kl"] == pytest.approx(found["omega"] / found["measured_kl"])  # type: ignore[operator]
    assert found["fisher_seconds"] > 0  # type: ignore[operator]
