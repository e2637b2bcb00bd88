"""Merging on ΔW: identities, a worked example, brute force with dense matrices, and PEFT's own answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapters.base import Base, find_base
from adapters.check import Limits, check_folder
from adapters.errors import BadAdapter
from adapters.manifests import weights_digest
from tests.trainer_base import SHAPE, encoded, loaded_base, make_trainable_base, varied_rows
from trainer.batches import collate
from trainer.lora import Factors, lora_layers
from trainer.merging.config import MergeSettings
from trainer.merging.dare import drop, mask_generator
from trainer.merging.folders import StoredAdapter, read_adapter, target_names
from trainer.merging.merge import Merged, Weighted, merge_adapters, refuse_misfits, write_merged
from trainer.merging.svd import truncate, truncate_dense
from trainer.merging.task_arithmetic import weighted_sum
from trainer.merging.ties import merge_ties
from trainer.merging.wise_ft import rescaled
from trainer.model import WEIGHTS_FILE, LoraShape, add_lora, load_adapter, save_adapter

FLOAT32 = 1e-6  # relative to the largest element: float32 rounding of sums of a few products
LOGITS_FLOAT32 = 2e-5  # logits of size 1–10 after two layers in float32, in another order of additions
LOGITS_BFLOAT16 = 0.1  # the same with weights of 8 significant bits


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    torch.set_num_threads(1)
    return find_base(str(make_trainable_base(tmp_path_factory.mktemp("base") / "tiny")))


@pytest.fixture(scope="module")
def folders(base: Base, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Adapters with an effect: two plain ones, one for rsLoRA, one on the MLP alone with another rank."""
    root = tmp_path_factory.mktemp("adapters")
    shapes = {
        "one": SHAPE,
        "two": SHAPE,
        "rslora": replace(SHAPE, rank=3, rslora=True),
        "mlp": LoraShape(rank=2, alpha=6, targets=("up_proj", "down_proj")),
    }
    for seed, (name, shape) in enumerate(shapes.items()):
        save_adapter(lora(base, shape, seed), root / name, base.id)
    return {name: root / name for name in shapes}


def lora(base: Base, shape: LoraShape, seed: int) -> Any:
    loaded = loaded_base(base.folder)
    torch.manual_seed(seed)
    model: Any = add_lora(loaded, shape)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def inputs(folders: Sequence[Path], weights: Sequence[float] = ()) -> list[Weighted]:
    weights = weights or [1.0] * len(folders)
    return [Weighted(read_adapter(one), weights_digest(one), put) for one, put in zip(folders, weights, strict=True)]


def settings(method: str, **values: Any) -> MergeSettings:
    return MergeSettings.model_validate({"base": "tiny", "out": "out", "method": method, **values})


def merged_folder(put: Sequence[Weighted], chosen: MergeSettings, folder: Path, base: Base) -> Path:
    write_merged(merge_adapters(put, chosen), put, chosen, folder, base)
    return folder


def peft_delta(base: Base, folder: Path) -> dict[str, Tensor]:
    """Brute force: what PEFT itself adds to each weight, from the folder alone."""
    model: Any = load_adapter(loaded_base(base.folder), folder)
    return {
        name.removeprefix("base_model.model."): module.get_delta_weight("default").detach()
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }


def logits(base: Base, folder: Path | None, *, scale: float = 1.0) -> Tensor:
    loaded = loaded_base(base.folder)
    batch = collate(encoded(loaded, varied_rows(5)), loaded.pad_token)
    model = load_adapter(loaded, folder) if folder else loaded.model
    with torch.no_grad(), rescaled(model, scale):
        found: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return found[batch.attention_mask.bool()]


def assert_close(found: Tensor, expected: Tensor, tolerance: float = FLOAT32) -> None:
    assert float((found - expected).abs().max()) <= tolerance * max(1.0, float(expected.abs().max()))


# -- the folder -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["one", "rslora", "mlp"])
def test_the_delta_read_from_a_folder_is_the_one_peft_applies(
    base: Base, folders: Mapping[str, Path], name: str
) -> None:
    expected = peft_delta(base, folders[name])
    found = read_adapter(folders[name]).layers
    assert found.keys() == expected.keys()
    for layer, delta in found.items():
        assert_close(delta.dense, expected[layer])


def test_a_rank_pattern_scales_each_layer_by_its_own_rank(
    base: Base, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """PEFT itself builds the adapter with the pattern; α/r then differs by layer."""
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"], rank_pattern={"up_proj": 2})
    model: Any = get_peft_model(loaded_base(base.folder).model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(model, tmp_path / "pattern", base.id)
    check_folder(tmp_path / "pattern", base, limits=Limits())
    expected = peft_delta(base, tmp_path / "pattern")
    for layer, delta in read_adapter(tmp_path / "pattern").layers.items():
        assert_close(delta.dense, expected[layer])
    put = inputs([tmp_path / "pattern", folders["mlp"]])
    written = peft_delta(base, merged_folder(put, settings("sum"), tmp_path / "sum", base))
    other = peft_delta(base, folders["mlp"])
    for layer in written:
        assert_close(written[layer], expected.get(layer, torch.zeros(1)) + other.get(layer, torch.zeros(1)))


@pytest.mark.parametrize("name", ["one", "rslora", "mlp"])
def test_weight_one_returns_the_very_files(base: Base, folders: Mapping[str, Path], tmp_path: Path, name: str) -> None:
    put = inputs([folders[name]], [1.0])
    assert weights_digest(merged_folder(put, settings("scale"), tmp_path / "same", base)) == weights_digest(
        folders[name]
    )


def test_weight_one_in_a_sum_is_itself_to_rounding(base: Base, folders: Mapping[str, Path], tmp_path: Path) -> None:
    put = inputs([folders["rslora"], folders["two"]], [1.0, 0.0])
    found = peft_delta(base, merged_folder(put, settings("sum"), tmp_path / "sum", base))
    for layer, expected in peft_delta(base, folders["rslora"]).items():
        assert_close(found[layer], expected)


@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": r".*\.1\..*_proj"},
        {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [0]},
        {"target_modules": "all-linear", "exclude_modules": ["v_proj"]},
    ],
    ids=["regex", "layers", "excluded"],
)
def test_whatever_way_the_targets_were_named_the_same_layers_come_back(
    base: Base, folders: Mapping[str, Path], tmp_path: Path, targets: dict[str, Any]
) -> None:
    """Written by PEFT, merged with nothing and scaled by 1: PEFT must find the same ΔW in the same layers."""
    model: Any = get_peft_model(loaded_base(base.folder).model, LoraConfig(r=4, lora_alpha=8, **targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(str(tmp_path / "own"), save_embedding_layers=False)
    expected = peft_delta(base, tmp_path / "own")
    put = inputs([tmp_path / "own", folders["mlp"]], [1.0, 0.0])
    for found in (
        peft_delta(base, merged_folder(put[:1], settings("scale"), tmp_path / "scale", base)),
        peft_delta(base, merged_folder(put, settings("sum"), tmp_path / "sum", base)),
    ):
        for layer in found.keys() | expected.keys():
            assert_close(found.get(layer, torch.zeros(1)), expected.get(layer, torch.zeros(1)))
    scaled = peft_delta(base, tmp_path / "scale")
    assert scaled.keys() == expected.keys()


def test_bfloat16_weights_are_read_exactly(folders: Mapping[str, Path], tmp_path: Path) -> None:
    stored = {name: one.bfloat16() for name, one in load_file(folders["one"] / WEIGHTS_FILE).items()}
    (tmp_path / "adapter_config.json").write_bytes((folders["one"] / "adapter_config.json").read_bytes())
    save_file(stored, tmp_path / WEIGHTS_FILE)
    found = read_adapter(tmp_path).weights
    assert all(one.dtype == torch.float32 and torch.equal(one.bfloat16(), stored[name]) for name, one in found.items())


@pytest.mark.parametrize("method", ["soup", "sum", "ties", "dare"])
def test_what_is_written_passes_the_publication_check_and_peft_adds_what_was_merged(
    base: Base, folders: Mapping[str, Path], tmp_path: Path, method: str
) -> None:
    put = inputs([folders["one"], folders["mlp"], folders["rslora"]])
    chosen = settings(method)
    merged = merge_adapters(put, chosen)
    write_merged(merged, put, chosen, tmp_path / "out", base)
    checked = check_folder(tmp_path / "out", base, limits=Limits())
    assert checked.rank == checked.alpha == merged.rank
    found = peft_delta(base, tmp_path / "out")
    for layer, delta in merged.layers.items():
        assert_close(found[layer], delta.dense)
    targets = json.loads((tmp_path / "out/adapter_config.json").read_text(encoding="utf-8"))["target_modules"]
    assert targets == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]


def test_layers_that_share_a_name_with_others_are_named_in_full(base: Base, folders: Mapping[str, Path]) -> None:
    layers = read_adapter(folders["mlp"]).layers
    first = [name for name in layers if ".0." in name]
    assert target_names(layers, base) == ["down_proj", "up_proj"]
    assert target_names(first, base) == ["model.layers.0.mlp.down_proj", "model.layers.0.mlp.up_proj"]


# -- methods ----------------------------------------------------------------------------------------------------------


def test_scale_zero_is_the_base_and_a_scale_between_is_that_share_of_delta(
    base: Base, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    nothing = merged_folder(inputs([folders["one"]], [0.0]), settings("scale"), tmp_path / "zero", base)
    assert torch.equal(logits(base, nothing), logits(base, None))
    part = merged_folder(inputs([folders["one"]], [0.3]), settings("scale"), tmp_path / "part", base)
    whole = peft_delta(base, folders["one"])
    for layer, found in peft_delta(base, part).items():
        assert_close(found, 0.3 * whole[layer])


def test_a_model_rescaled_in_place_answers_as_the_written_scale_and_is_itself_again_afterwards(
    base: Base, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    part = merged_folder(inputs([folders["rslora"]], [0.3]), settings("scale"), tmp_path / "part", base)
    assert_close(logits(base, folders["rslora"], scale=0.3), logits(base, part), LOGITS_FLOAT32)
    assert not torch.allclose(logits(base, folders["rslora"]), logits(base, part), atol=1e-2)
    model = load_adapter(loaded_base(base.folder), folders["rslora"])
    before = [layer.scale for layer in lora_layers(model)]
    with rescaled(model, 0.3):
        assert [layer.scale for layer in lora_layers(model)] == [one * 0.3 for one in before]
    assert [layer.scale for layer in lora_layers(model)] == before


def test_a_sum_by_concatenation_equals_the_dense_sum(base: Base, folders: Mapping[str, Path], tmp_path: Path) -> None:
    """Negative weights, a layer that only some have, and rsLoRA included."""
    names, weights = ("one", "mlp", "rslora"), (1.5, -0.7, 0.25)
    put = inputs([folders[name] for name in names], weights)
    found = peft_delta(base, merged_folder(put, settings("sum"), tmp_path / "sum", base))
    dense = [peft_delta(base, folders[name]) for name in names]
    for layer, delta in found.items():
        expected = sum(weight * one[layer] for weight, one in zip(weights, dense, strict=True) if layer in one)
        assert isinstance(expected, Tensor)
        assert_close(delta, expected)
    merged = merge_adapters(put, settings("sum"))
    assert merged.rank == 4 + 2 + 3
    assert set(merged.lost.values()) == {0.0}


def test_adding_a_and_b_apart_would_be_another_function(folders: Mapping[str, Path]) -> None:
    """The trap: PEFT's `linear` combination. The relative error is that of two unrelated matrices, about 1."""
    one, two = (next(iter(read_adapter(folders[name]).layers.values())) for name in ("one", "two"))
    right = weighted_sum([one, two], [1, 1]).dense
    wrong = Factors(one.up + two.up, one.down + two.down).dense
    assert float((wrong - right).norm() / right.norm()) > 0.5


def test_peft_cat_agrees_for_plain_lora(base: Base, folders: Mapping[str, Path], tmp_path: Path) -> None:
    """Their exact combination, as a cross-check; its weights are all positive there."""
    model: Any = load_adapter(loaded_base(base.folder), folders["one"])
    model.load_adapter(str(folders["two"]), "two")
    model.add_weighted_adapter(["default", "two"], [0.5, 2.0], "both", combination_type="cat")
    theirs = {
        name.removeprefix("base_model.model."): module.get_delta_weight("both").detach()
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    put = inputs([folders["one"], folders["two"]], [0.5, 2.0])
    for layer, ours in merge_adapters(put, settings("sum")).layers.items():
        assert_close(ours.dense, theirs[layer])


def test_a_soup_is_the_mean(folders: Mapping[str, Path]) -> None:
    put = inputs([folders["one"], folders["mlp"]])
    one, other = (each.adapter.layers for each in put)
    for layer, delta in merge_adapters(put, settings("soup")).layers.items():
        assert_close(delta.dense, (one[layer].dense + (other[layer].dense if layer in other else 0)) / 2)


def test_ties_follows_a_hand_worked_example() -> None:
    """Density 1/2 keeps the largest 2 of 4 entries.

    [[ 4, −1], [ 3, 2]] → [[ 4, 0], [ 3, 0]]   signs of the sums 4−2+1, 0, 3−5, 6: [[+, ·], [−, +]]
    [[−2,  1], [−5, 0]] → [[−2, 0], [−5, 0]]   means of those that agree: (4+1)/2, 0, −5, 6
    [[ 1,  0], [ 0, 6]] → [[ 1, 0], [ 0, 6]]
    """
    tasks = [
        torch.tensor([[4.0, -1.0], [3.0, 2.0]]),
        torch.tensor([[-2.0, 1.0], [-5.0, 0.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 6.0]]),
    ]
    assert torch.equal(merge_ties(tasks, 0.5), torch.tensor([[2.5, 0.0], [-5.0, 6.0]]))


def test_ties_of_one_adapter_with_everything_kept_is_its_weight_times_itself(folders: Mapping[str, Path]) -> None:
    put = inputs([folders["one"]], [0.5])
    for layer, delta in merge_adapters(put, settings("ties", density=1.0)).layers.items():
        assert_close(delta.dense, 0.5 * put[0].adapter.layers[layer].dense, 1e-5)


def test_dare_is_delta_in_the_mean_over_masks() -> None:
    """Each entry's mean over 4,000 draws lies within 3 standard errors of ΔW, √(p/(1−p)/n)·|ΔW|, for 99.7 % of them."""
    draws, share = 4000, 0.6
    delta = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    mean = torch.stack([drop(delta, share, generator) for _ in range(draws)]).mean(dim=0)
    error = delta.abs() * (share / (1 - share) / draws) ** 0.5
    assert float(((mean - delta).abs() < 3 * error).float().mean()) > 0.98
    assert float(((mean - delta) / error).square().mean()) == pytest.approx(1, abs=0.3)


def test_dare_draws_its_own_stream_by_seed_adapter_and_layer(folders: Mapping[str, Path]) -> None:
    put = inputs([folders["one"], folders["two"]])
    before = torch.get_rng_state()

    def dense(seed: int, chosen: Sequence[Weighted]) -> Tensor:
        return next(iter(merge_adapters(chosen, settings("dare", seed=seed, rank=48)).layers.values())).dense

    assert_close(dense(0, put), dense(0, put[::-1]), 1e-5)
    assert not torch.allclose(dense(0, put), dense(1, put), atol=1e-3)
    assert torch.equal(before, torch.get_rng_state())
    streams = [(0, "a", "q"), (0, "a", "k"), (0, "b", "q"), (1, "a", "q")]
    assert len({float(torch.rand((), generator=mask_generator(*one))) for one in streams}) == 4


def test_dare_that_drops_nothing_is_the_weighted_sum(folders: Mapping[str, Path]) -> None:
    put = inputs([folders["one"], folders["rslora"]], [0.5, -2.0])
    plain = merge_adapters(put, settings("sum"))
    nothing = merge_adapters(put, settings("dare", drop=0.0))
    for layer, delta in plain.layers.items():
        assert_close(nothing.layers[layer].dense, delta.dense, 1e-5)
        assert nothing.lost[layer] == pytest.approx(0, abs=1e-10)


def test_inputs_that_disagree_on_a_shape_are_refused_with_every_layer(folders: Mapping[str, Path]) -> None:
    """A quantised base says nothing of shapes, so the publication check lets both pass."""
    one, two = inputs([folders["one"], folders["two"]])
    cut = {name: tensor[:, :-1] if ".lora_A." in name else tensor for name, tensor in two.adapter.weights.items()}
    with pytest.raises(BadAdapter, match=r"layers\.0\.self_attn\.q_proj is \[\(48, 47\), \(48, 48\)\]") as refused:
        refuse_misfits([one, replace(two, adapter=StoredAdapter(two.adapter.config, cut))])
    assert len(refused.value.problems) == len(one.adapter.layers)


def test_svd_of_a_matrix_of_that_rank_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    thin = Factors(torch.randn(30, 4, generator=generator), torch.randn(4, 50, generator=generator))
    twice = weighted_sum([thin, thin], [0.5, 0.5])
    for found in (truncate(twice, 4), truncate_dense(twice.dense, 4)):
        assert found.factors.up.shape == (30, 4)
        assert_close(found.factors.dense, thin.dense, 2 * FLOAT32)
        assert found.lost == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(30, 12, 50), (8, 20, 50), (50, 20, 8)])
def test_the_energy_lost_is_that_of_a_dense_svd_by_numpy(shape: tuple[int, int, int]) -> None:
    out, inner, into = shape
    generator = torch.Generator().manual_seed(0)
    delta = Factors(torch.randn(out, inner, generator=generator), torch.randn(inner, into, generator=generator))
    sigma = np.linalg.svd(delta.dense.double().numpy(), compute_uv=False)
    expected = 1 - (sigma[:5] ** 2).sum() / (sigma**2).sum()
    for found in (truncate(delta, 5), truncate_dense(delta.dense, 5)):
        assert found.lost == pytest.approx(expected, abs=1e-6)
        residual = (delta.dense - found.factors.dense).square().sum() / delta.dense.square().sum()
        assert float(residual) == pytest.approx(expected, abs=1e-5)


def test_a_rank_cuts_every_method_and_the_loss_is_reported_by_layer(
    base: Base, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    put = inputs([folders["one"], folders["two"]])
    found: dict[str, Merged] = {method: merge_adapters(put, settings(method, rank=3)) for method in ("soup", "dare")}
    for merged in found.values():
        assert merged.rank == 3
        assert all(0 < lost < 1 for lost in merged.lost.values())
    alone = inputs([folders["one"]], [0.5])
    folder = merged_folder(alone, settings("scale", rank=2), tmp_path / "cut", base)
    assert check_folder(folder, base, limits=Limits()).rank == 2


def test_without_a_rank_nothing_exact_is_ever_cut(base: Base, tmp_path: Path) -> None:
    """Rank 70 is over what most engines load; to scale it is not to lose any of it."""
    save_adapter(lora(base, LoraShape(rank=70, alpha=70, targets=("q_proj",)), 0), tmp_path / "high", base.id)
    merged = merge_adapters(inputs([tmp_path / "high"], [0.5]), settings("scale"))
    assert (merged.rank, set(merged.lost.values())) == (70, {0.0})


# -- serving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, LOGITS_FLOAT32), (torch.bfloat16, LOGITS_BFLOAT16)])
def test_an_adapter_merged_into_the_weights_answers_as_the_unmerged_one(
    base: Base, folders: Mapping[str, Path], tmp_path: Path, dtype: torch.dtype, tolerance: float
) -> None:
    """Merged in float32 and then cast, against base and adapter apart in float32."""
    put = inputs([folders["one"], folders["rslora"]], [0.6, 0.6])
    expected = logits(base, merged_folder(put, settings("sum"), tmp_path / "sum", base))
    loaded = loaded_base(base.folder)
    modules = dict(loaded.model.named_modules())
    for layer, delta in merge_adapters(put, settings("sum")).layers.items():
        modules[layer].weight.data += delta.dense
    model = loaded.model.to(dtype)
    batch = collate(encoded(loaded, varied_rows(5)), loaded.pad_token)
    with torch.no_grad():
        found = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits.float()
    assert_close(found[batch.attention_mask.bool()], expected, tolerance)


def test_a_mixed_batch_gives_each_row_the_logits_of_its_own_adapter(
    base: Base, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """Base, two adapters and a merged one of another rank, row by row in one pass."""
    put = inputs([folders["one"], folders["two"]])
    merged = merged_folder(put, settings("soup"), tmp_path / "soup", base)
    loaded = loaded_base(base.folder)
    batch = collate(encoded(loaded, varied_rows(5)), loaded.pad_token)
    model: Any = PeftModel.from_pretrained(loaded.model, str(folders["one"])).eval()
    model.load_adapter(str(folders["rslora"]), "rslora")
    model.load_adapter(str(merged), "soup")
    names = ["default", "soup", "__base__", "rslora", "soup"]
    with torch.no_grad():
        mixed = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, adapter_names=names).logits
    mask = batch.attention_mask.bool()
    rows = [mixed[row][mask[row]] for row in range(5)]
    sizes = [len(row) for row in rows]
    single = {"default": folders["one"], "soup": merged, "__base__": None, "rslora": folders["rslora"]}
    for row, name in enumerate(names):
        assert_close(rows[row], torch.split(logits(base, single[name]), sizes)[row], LOGITS_FLOAT32)
