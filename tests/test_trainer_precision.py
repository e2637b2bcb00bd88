"""What runs in which precision, and what a step computes whatever its cost in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.trainer_base import Files, encoded, lora_model, make_files, varied_rows
from tests.trainer_runs import execute
from trainer.batches import Batch, ShuffledBatches
from trainer.errors import ConfigInvalid, Diverged
from trainer.evaluate import Evaluator
from trainer.loop import StepReport, train
from trainer.lora import lora_layers
from trainer.machine import Machine, find_machine
from trainer.objective import Objective, Penalty
from trainer.schedule import Budget, LearningRate

STEPS = 4


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.set_num_threads(1)
    return make_files(tmp_path_factory.mktemp("task"))


def trained(
    files: Files, machine: Machine, *penalties: Penalty, checkpointing: bool = False
) -> tuple[Any, torch.optim.Optimizer, list[StepReport]]:
    loaded, model = lora_model(files.base, effect=0.05)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    batches = ShuffledBatches(encoded(loaded, varied_rows(24)), batch_tokens=128, seed=0, pad_token=loaded.pad_token)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad])
    reports = train(
        model,
        batches,
        Objective(penalties),
        optimizer,
        budget=Budget(STEPS),
        learning_rate=LearningRate(0.01, "constant", 0.0),
        accumulation=2,
        seed=0,
        machine=machine,
    )
    return model, optimizer, list(reports)


def weights(model: Any) -> list[Tensor]:
    return [one.detach() for one in model.parameters() if one.requires_grad]


class Dtypes:
    """A penalty of weight 0 that notes in what precision it and the model compute."""

    name = "dtypes"

    def __init__(self) -> None:
        self.seen: dict[str, torch.dtype] = {}

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        layer = lora_layers(model)[0]
        inside: list[torch.dtype] = []
        handle = layer.module.base_layer.register_forward_hook(lambda _1, _2, output: inside.append(output.dtype))
        with torch.no_grad(), model.disable_adapter():
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
        handle.remove()
        self.seen = {"logits": logits.dtype, "delta": layer.delta.dense.dtype, "own forward pass": inside[0]}
        return logits.new_zeros(())


def test_bf16_is_for_forward_passes_alone_whoever_runs_them(files: Files) -> None:
    dtypes = Dtypes()
    model, optimizer, _ = trained(files, find_machine("bf16"), dtypes)
    assert dtypes.seen == {"logits": torch.float32, "delta": torch.float32, "own forward pass": torch.bfloat16}
    kept = [*model.parameters(), *(one.grad for one in model.parameters() if one.grad is not None)]
    kept += [value for state in optimizer.state.values() for value in state.values()]
    assert {one.dtype for one in kept} == {torch.float32}


def test_after_a_step_in_bf16_the_model_computes_in_float32_again(files: Files) -> None:
    """Evaluation is float32, as it is served."""
    loaded, _ = lora_model(files.base)
    model, *_ = trained(files, find_machine("bf16"))
    evaluator = Evaluator(model, loaded.tokenizer, loaded.end_tokens, loaded.pad_token, "exact_match")
    items = encoded(loaded, varied_rows(4))
    again = [one.score.nll for one in evaluator.score(items)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = [one.score.nll for one in evaluator.score(items)]
    assert again != rounded
    assert all(output.dtype == torch.float32 for output in [model(input_ids=torch.tensor([[1, 2]])).logits])


def test_losses_in_bf16_are_those_in_float32_to_its_eight_bits(files: Files) -> None:
    """bfloat16 keeps 8 bits: 2^-8 = 0.4 % each rounding; 2 % for what adds up over the layers and steps."""
    _, _, exact = trained(files, find_machine("no"))
    _, _, rounded = trained(files, find_machine("bf16"))
    assert [one.loss for one in rounded] != [one.loss for one in exact]
    assert [one.loss for one in rounded] == pytest.approx([one.loss for one in exact], rel=0.02)


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a GPU")
def test_fp16_without_a_gpu_is_refused(files: Files, tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="fp16 needs a GPU"):
        execute({**files.values, "precision": "fp16"}, tmp_path / "out")


def test_scaling_the_loss_as_float16_needs_it_changes_no_bit_of_the_step(files: Files) -> None:
    """The scale is a power of two: multiplying by it and dividing again is exact in float32."""
    plain, _, _ = trained(files, Machine())
    scaled, _, _ = trained(files, Machine(scaler=torch.amp.GradScaler("cpu", init_scale=2.0**16)))
    assert all(torch.equal(one, two) for one, two in zip(weights(plain), weights(scaled), strict=True))


def test_a_step_whose_scaled_gradient_overflows_is_left_out_and_the_scale_halved(files: Files) -> None:
    """2^127 x 10^4 is more than a float32 holds, 10^4 is not: only the scale is at fault."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    machine = Machine(scaler=scaler)
    model, _, reports = trained(files, machine, Steep())
    _, fresh = lora_model(files.base, effect=0.05)
    assert all(torch.equal(one, two) for one, two in zip(weights(model), weights(fresh), strict=True))
    assert scaler.get_scale() == 2.0 ** (127 - len(reports))
    saved = machine.stateful[0].state()
    other = Machine(scaler=torch.amp.GradScaler("cpu"))
    other.stateful[0].restore(saved)
    assert other.stateful[0].state() == saved


def test_with_the_smallest_scale_an_endless_gradient_is_a_diverged_run(files: Files) -> None:
    with pytest.raises(Diverged):
        trained(files, Machine(scaler=torch.amp.GradScaler("cpu", init_scale=1.0)), Endless())


class Steep:
    """10^4 times the sum of the weights."""

    name = "steep"

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        return 1e4 * torch.stack([one.sum() for one in model.parameters() if one.requires_grad]).sum()


class Endless:
    """A finite penalty whose gradient is not: the square root at 0."""

    name = "endless"

    def __call__(self, model: Any, batch: Batch, logits: Tensor) -> Tensor:
        return (logits * 0).square().sum().sqrt()


def test_gradient_checkpointing_computes_the_same(files: Files) -> None:
    """The same operations in the same order, so the tolerance is float32's rounding."""
    kept, _, _ = trained(files, Machine())
    twice, _, _ = trained(files, Machine(), checkpointing=True)
    for one, two in zip(weights(kept), weights(twice), strict=True):
        torch.testing.assert_close(one, two, atol=1e-6, rtol=1e-6)


def test_a_run_may_go_on_with_gradient_checkpointing_where_it_stopped_without(files: Files, tmp_path: Path) -> None:
    """It changes what is kept in memory, not what is computed; with dropout the draws are repeated too."""
    values = {**files.values, "dropout": 0.2, "max_steps": 4, "guardrails": []}
    kept, twice = (
        execute({**values, "gradient_checkpointing": checkpointing}, tmp_path / str(checkpointing))
        for checkpointing in (False, True)
    )
    assert kept["identity"] == twice["identity"]
    mine, theirs = (load_file(tmp_path / name / "adapter/adapter_model.safetensors") for name in ("False", "True"))
    for name in mine:
        torch.testing.assert_close(mine[name], theirs[name], atol=1e-5, rtol=1e-5)
