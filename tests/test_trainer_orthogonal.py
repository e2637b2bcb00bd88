"""O-LoRA's overlap against hand-worked numbers, and what it does to a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.trainer_methods import Workshop, assert_quiet, make_workshop, same, train_steps, weights
from trainer.batches import collate
from trainer.errors import ConfigInvalid
from trainer.lora import lora_layers
from trainer.methods.orthogonal import build, read_directions
from trainer.methods.recipe import Context, Recipe
from trainer.methods.settings import Orthogonal
from trainer.model import WEIGHTS_FILE, LoraShape, add_lora, load_base, save_adapter
from trainer.past import Past


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("orthogonal"))


@pytest.fixture(scope="module")
def earlier(workshop: Workshop) -> tuple[Path, Path]:
    """Adapters of rank 4 on all layers and of rank 2 on q_proj alone."""
    base = workshop.context().loaded.base
    folders = []
    for seed, shape in enumerate((LoraShape(4, 8, ("all-linear",)), LoraShape(2, 4, ("q_proj",)))):
        torch.manual_seed(100 + seed)
        folders.append(workshop.folder / f"earlier-{seed}")
        save_adapter(add_lora(load_base(base), shape), folders[-1], base.id)
    return folders[0], folders[1]


def context_with(workshop: Workshop, *adapters: Path) -> Context:
    return workshop.context(past=Past(adapters=adapters))


def overlap_by_hand(folders: tuple[Path, ...], model: Any) -> float:
    """Loops over adapters, layers, rows and columns, in Python numbers."""
    total = 0.0
    for folder in folders:
        saved = load_file(folder / WEIGHTS_FILE)
        for layer in lora_layers(model):
            old = saved.get(f"base_model.model.{layer.name}.lora_A.weight")
            for row in [] if old is None else old.tolist():
                for new in layer.a.detach().tolist():
                    total += abs(sum(x * y for x, y in zip(row, new, strict=True)))
    return total


def value(recipe: Recipe, context: Context) -> Tensor:
    batch = collate(context.examples[:2], context.loaded.pad_token)
    return recipe.penalties[0](context.model, batch, torch.zeros(())).detach()


def test_the_overlap_is_the_sum_of_absolute_products_over_adapters_of_any_rank(
    workshop: Workshop, earlier: tuple[Path, Path]
) -> None:
    context = context_with(workshop, *earlier)
    recipe = assert_quiet(context, lambda one: build(Orthogonal(weight=0.5), one))
    expected = overlap_by_hand(earlier, context.model)
    assert float(value(recipe, context)) == pytest.approx(0.5 * expected, rel=1e-5)


def test_orthogonal_rows_cost_nothing_and_equal_rows_their_squared_norm(workshop: Workshop, tmp_path: Path) -> None:
    """A_old = e₁ of layer q; A_new = e₂, then 3·e₁ in its first row, zero elsewhere: 0 and 3."""
    context = workshop.context()
    layer = next(one for one in lora_layers(context.model) if one.name.endswith("q_proj"))
    old = torch.eye(1, layer.a.shape[1])
    save_file({f"base_model.model.{layer.name}.lora_A.weight": old}, tmp_path / WEIGHTS_FILE)
    context = replace(context, past=Past(adapters=(tmp_path,)))
    recipe = build(Orthogonal(weight=1.0), context)
    with torch.no_grad():
        layer.a.zero_()
        layer.a[0, 1] = 1.0
        assert float(value(recipe, context)) == 0.0
        layer.a[0, 0] = 3.0
        assert float(value(recipe, context)) == 3.0


def test_it_turns_the_new_directions_away_from_the_old(
    workshop: Workshop, earlier: tuple[Path, Path], tmp_path: Path
) -> None:
    """Compared with the same run without it; the overlap falls by at least half (measured: to a fifth)."""
    plain, penalised = context_with(workshop, *earlier), context_with(workshop, *earlier)
    finish = build(Orthogonal(weight=0.5), plain).finish["orthogonal"]
    train_steps(plain, Recipe(), 12)
    recipe = build(Orthogonal(weight=0.5), penalised)
    train_steps(penalised, recipe, 12)
    without, with_it = finish(plain.model, tmp_path), recipe.finish["orthogonal"](penalised.model, tmp_path)
    assert with_it["overlap"] == pytest.approx(overlap_by_hand(earlier, penalised.model), rel=1e-5)
    assert float(str(with_it["overlap"])) < 0.5 * float(str(without["overlap"]))
    assert float(str(with_it["mean_cosine"])) < float(str(without["mean_cosine"]))


def test_weight_0_changes_no_bit(workshop: Workshop, earlier: tuple[Path, Path]) -> None:
    plain, zero = workshop.context(), context_with(workshop, *earlier)
    train_steps(plain, Recipe())
    train_steps(zero, build(Orthogonal(weight=0.0), zero))
    assert same(weights(plain.model), weights(zero.model))


def test_without_an_earlier_adapter_there_is_nothing_to_be_orthogonal_to(workshop: Workshop) -> None:
    with pytest.raises(ConfigInvalid, match="no earlier adapter"):
        build(Orthogonal(weight=0.5), workshop.context())


def test_every_folder_that_does_not_fit_is_named_at_once(workshop: Workshop, tmp_path: Path) -> None:
    context = workshop.context()
    layer = lora_layers(context.model)[0].name
    contents = {
        "narrow": {f"base_model.model.{layer}.lora_A.weight": torch.ones(2, 3)},
        "foreign": {"base_model.model.other.lora_A.weight": torch.ones(2, 3)},
        "prompt": {"prompt_embeddings": torch.ones(2, 3)},
    }
    for name, tensors in contents.items():
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / WEIGHTS_FILE)
    with pytest.raises(ConfigInvalid) as raised:
        read_directions([tmp_path / name for name in (*contents, "absent")], context.model)
    narrow, foreign, prompt, absent = raised.value.problems
    assert "narrow has 3 inputs" in narrow
    assert "foreign and this run adapt no layer in common" in foreign
    assert "prompt holds no LoRA weights" in prompt
    assert "absent cannot be read" in absent
