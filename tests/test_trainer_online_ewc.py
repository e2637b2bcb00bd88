"""Online EWC counts every task once: the joint optimum on quadratics, and what a stage leaves for the next."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.trainer_methods import Workshop, make_workshop
from trainer.errors import CheckpointInvalid, ConfigInvalid
from trainer.fisher.estimate import choose_rows, estimate_fisher
from trainer.fisher.folder import load_importance
from trainer.fisher.importance import Importance, Price, fold
from trainer.lora import Factors
from trainer.methods.online_ewc import build
from trainer.methods.quadratic import QuadraticPenalty
from trainer.methods.recipe import Context
from trainer.methods.settings import OnlineEwc
from trainer.past import Past

SIZE = 6


@dataclass(frozen=True, slots=True, eq=False)
class Full:
    """A curvature with every entry, (n, n) in float64, for moves of n numbers: what the stored shapes approximate."""

    matrix: Tensor

    def omega(self, difference: Factors) -> Tensor:
        move = difference.dense.flatten()
        cost: Tensor = 0.5 * move @ self.matrix @ move
        return cost

    def around(self, start: Factors) -> Price:
        return lambda delta: self.omega(delta.minus(start))

    def scaled(self, share: float) -> Full:
        return Full(self.matrix * share)

    def plus(self, other: Full) -> Full:
        return Full(self.matrix + other.matrix)

    def to(self, device: torch.device) -> Full:
        return Full(self.matrix.to(device))


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """Mean loss ½ (w − optimum)ᵀ curvature (w − optimum) over `tokens` tokens, in closed form."""

    tokens: float
    curvature: Tensor
    optimum: Tensor

    @property
    def importance(self) -> Importance:
        return Importance("diagonal", "exact", {"layer": Full(self.curvature)}, self.tokens)


def make_tasks(count: int) -> list[Task]:
    draw = torch.Generator().manual_seed(7)
    tasks = []
    for tokens in (100.0, 700.0, 40.0, 2500.0, 300.0)[:count]:
        root = torch.randn(SIZE, SIZE, generator=draw, dtype=torch.float64)
        optimum = torch.randn(SIZE, generator=draw, dtype=torch.float64)
        tasks.append(Task(tokens, root @ root.T + torch.eye(SIZE, dtype=torch.float64), optimum))
    return tasks


def joint(tasks: Sequence[Task]) -> Tensor:
    """The minimum of Σ T_i L_i, by the normal equations."""
    left = torch.stack([task.tokens * task.curvature for task in tasks]).sum(0)
    right = torch.stack([task.tokens * task.curvature @ task.optimum for task in tasks]).sum(0)
    solution: Tensor = torch.linalg.solve(left, right)
    return solution


def quadratic(w: Tensor, curvature: Tensor, optimum: Tensor) -> Tensor:
    cost: Tensor = 0.5 * (w - optimum) @ curvature @ (w - optimum)
    return cost


def minimum(task: Task, penalties: Sequence[tuple[float, Importance, Tensor]]) -> Tensor:
    """The minimum of L + Σ weight · Ω(w − w*), one Newton step through autograd: exact, for all terms are quadratic."""

    def loss(w: Tensor) -> Tensor:
        total = quadratic(w, task.curvature, task.optimum)
        for weight, importance, reference in penalties:
            move = Factors((w - reference).unsqueeze(1), torch.ones(1, 1, dtype=torch.float64))
            total = total + weight * importance.omega({"layer": move})
        return total

    zero = torch.zeros(SIZE, dtype=torch.float64)
    hessian, gradient = torch.func.jacrev(torch.func.grad(loss))(zero), torch.func.grad(loss)(zero)
    solution: Tensor = -torch.linalg.solve(hessian, gradient)
    return solution


def online(tasks: Sequence[Task], extend: Callable[[Importance, Importance], Importance]) -> Tensor:
    """One penalty around the latest optimum, λ_rel = 1."""
    w, known = tasks[0].optimum, tasks[0].importance
    for task in tasks[1:]:
        w = minimum(task, [(known.tokens / task.tokens, known, w)])
        known = extend(known, task.importance)
    return w


def separate(tasks: Sequence[Task]) -> Tensor:
    """The trap: a penalty around every earlier optimum, each with its own task's Fisher."""
    w, penalties = tasks[0].optimum, list[tuple[float, Importance, Tensor]]()
    for before, task in pairwise(tasks):
        penalties.append((before.tokens, before.importance, w))
        w = minimum(task, [(tokens / task.tokens, importance, around) for tokens, importance, around in penalties])
    return w


def counted_twice(old: Importance, new: Importance) -> Importance:
    """The trap: Fishers per token summed, and T summed as well."""
    exact = fold(replace(old, tokens=1.0), replace(new, tokens=1.0), 1.0)
    layers = {name: one.scaled(2.0) for name, one in exact.layers.items()}
    return replace(exact, layers=layers, tokens=old.tokens + new.tokens)


@pytest.mark.parametrize("count", [3, 5])
def test_with_full_curvature_it_is_the_joint_optimum(count: int) -> None:
    # Expected: the normal equations of all tasks' tokens together; float64, 1e-10.
    tasks = make_tasks(count)
    assert float((online(tasks, partial(fold, gamma=1.0)) - joint(tasks)).abs().max()) < 1e-10


@pytest.mark.parametrize("count", [3, 5])
def test_separate_penalties_are_not(count: int) -> None:
    tasks = make_tasks(count)
    assert float((separate(tasks) - joint(tasks)).abs().max()) > 1e-2


def test_with_two_tasks_separate_penalties_are_the_same() -> None:
    tasks = make_tasks(2)
    assert float((separate(tasks) - joint(tasks)).abs().max()) < 1e-10


@pytest.mark.parametrize("count", [3, 5])
def test_summed_fishers_times_summed_tokens_are_not(count: int) -> None:
    tasks = make_tasks(count)
    assert float((online(tasks, counted_twice) - joint(tasks)).abs().max()) > 1e-2


def test_gamma_fades_a_task_once_per_later_task() -> None:
    # Expected: Σ γ^(t−i) T_i by hand, γ = 0.5.
    tasks = make_tasks(3)
    folded = reduce(partial(fold, gamma=0.5), [task.importance for task in tasks])
    assert folded.tokens == 100.0 * 0.25 + 700.0 * 0.5 + 40.0


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("online"))


def settings(**changes: object) -> OnlineEwc:
    return OnlineEwc.model_validate({"sequences": 6, "importance": "kfac", **changes})


def stage(workshop: Workshop, folder: Path, tasks: int, left: Path | None = None) -> Context:
    past = workshop.past(tasks=tasks)
    return workshop.context(past=replace(past, start=folder, left=left), cache=folder / f"cache {tasks}")


def finish(context: Context, left: Path, **changes: object) -> tuple[QuadraticPenalty, Importance]:
    recipe = build(settings(**changes), context)
    folder = left / "online_ewc"
    folder.mkdir(parents=True)
    recipe.finish["online_ewc"](context.model, folder)
    [penalty] = recipe.penalties
    assert isinstance(penalty, QuadraticPenalty)
    return penalty, load_importance(folder / "importance")


def omega_of(context: Context, importance: Importance) -> float:
    return QuadraticPenalty("online_ewc", importance, {}, 1.0).measure(context.model)


def test_a_stage_adds_the_last_task_to_what_the_stage_before_left(workshop: Workshop, tmp_path: Path) -> None:
    # Expected: Σ γ^(t−i) T_i Ω_i / Σ γ^(t−i) T_i of the tasks' own Fishers, γ = 0.5; 1e-5 for float32.
    second = stage(workshop, tmp_path, 1)
    finish(second, tmp_path / "left 2", gamma=0.5)
    third = stage(workshop, tmp_path, 2, tmp_path / "left 2")
    penalty, left = finish(third, tmp_path / "left 3", gamma=0.5)
    one, two = third.past.tasks
    tokens = [0.5 * one.supervised, two.supervised]
    alone = [
        omega_of(third, estimate_fisher(third.model, choose_rows(task.examples, 6, 3), "kfac", seed=3))
        for task in (one, two)
    ]
    assert left.tokens == sum(tokens)
    assert penalty.weight == sum(tokens) / third.supervised
    expected = (tokens[0] * alone[0] + tokens[1] * alone[1]) / sum(tokens)
    assert omega_of(third, left) == pytest.approx(expected, rel=1e-5)


def test_tasks_that_no_stage_measured_are_measured_at_the_start(workshop: Workshop, tmp_path: Path) -> None:
    context = stage(workshop, tmp_path, 3)
    _, left = finish(context, tmp_path / "left")
    assert left.tokens == sum(task.supervised for task in context.past.tasks)
    assert left.sequences == 18


def test_a_first_task_has_nothing_to_protect(workshop: Workshop, tmp_path: Path) -> None:
    recipe = build(settings(), workshop.context(past=Past(), cache=tmp_path))
    assert (recipe.penalties, recipe.hooks, recipe.finish) == ((), (), {})


def test_a_fisher_of_another_kind_is_refused(workshop: Workshop, tmp_path: Path) -> None:
    finish(stage(workshop, tmp_path, 1), tmp_path / "left", importance="diagonal")
    with pytest.raises(ConfigInvalid, match="kind: diagonal so far, kfac now"):
        build(settings(), stage(workshop, tmp_path, 2, tmp_path / "left"))


def test_a_fisher_that_cannot_be_read_is_named(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "left" / "online_ewc" / "importance").mkdir(parents=True)
    with pytest.raises(CheckpointInvalid, match="the importance in importance cannot be read"):
        build(settings(), stage(workshop, tmp_path, 2, tmp_path / "left"))
