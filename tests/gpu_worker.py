"""What `test_trainer_gpu` has done where a GPU is seen: `python -m tests.gpu_worker FOLDER`, results as JSON in it."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.sequence_rows import make_plan, prepare, run_all
from tests.trainer_base import colour_rows, encoded, lora_model, make_files
from tests.trainer_runs import Watcher, execute
from trainer.batches import collate
from trainer.config import Precision
from trainer.errors import Interrupted
from trainer.folder import RunFolder
from trainer.machine import find_machine
from trainer.model import WEIGHTS_FILE
from trainer.objective import Objective
from trainer.sequences.report import summarise_sequence

LENGTHS = (64, 192)  # where cuDNN's attention fails, and the padding reaches over a tile of it
PRECISIONS: tuple[Precision, ...] = ("no", "bf16", "fp16")
METHODS = (
    "ewc:importance=kfac",
    "ewc:importance=diagonal",
    "ewc:importance=kron_diagonal",
    "online_ewc",
    "ewc_factors",
    "l2",
    "si",
    "mas",
    "replay:share=0.3",
    "replay:share=0.3,selection=diverse",
    "replay:share=0.3,selection=difficult",
    "replay:share=0.3,selection=self",
    "distill:teacher=live",
    "distill:teacher=cached",
    "kl",
    "masking:threshold=1000000",
    "invariant_path",
    "orthogonal",
    "projection:rows=4",
    "ema",
)


def arms() -> list[dict[str, object]]:
    """Plain training, a tuned prompt, and every method alone; fresh adapters where it keeps clear of earlier ones."""
    plain: list[dict[str, object]] = [{"name": "base", "mode": "base"}, {"name": "plain", "mode": "shared"}]
    prompt: dict[str, object] = {"name": "prompt", "mode": "isolated", "prompt_tokens": 4}
    methods: list[dict[str, object]] = [
        {"name": f"method-{number}", "mode": "isolated" if text == "orthogonal" else "shared", "methods": [text]}
        for number, text in enumerate(METHODS)
    ]
    return [*plain, prompt, *methods]


def main(root: Path) -> None:
    torch.set_num_threads(1)
    found = {
        "device": str(find_machine().device),
        "gradients": {str(length): padded_gradients(root / f"padded-{length}", length) for length in LENGTHS},
        "sequence": {precision: train_sequence(root / precision, precision) for precision in PRECISIONS},
        "resumed": resume(root / "resumed"),
    }
    (root / "found.json").write_text(json.dumps(found), encoding="utf-8")


def padded_gradients(root: Path, length: int) -> dict[str, list[float]]:
    """Norms of the gradients of a batch of that many columns whose shorter rows begin with padding."""
    files = make_files(root)
    norms: dict[str, list[float]] = {}
    for precision in PRECISIONS[:2]:
        loaded, model = lora_model(files.base, effect=0.05)
        machine = find_machine(precision)
        short = encoded(loaded, colour_rows(3))
        one = encoded(loaded, [("red " * length, "yes")])[0]
        longest = replace(one, prompt=one.prompt[-(length - len(one.completion)) :])
        batch = collate([*short, longest], loaded.pad_token).to(model.device)
        assert batch.input_ids.shape[1] == length
        with machine.computing(model):
            loss = Objective()(model, batch)
        machine.backward(loss.total)
        gradients: list[Tensor] = [one.grad for one in model.parameters() if one.grad is not None]
        norms[precision] = [float(gradient.norm()) for gradient in gradients]
    return norms


def train_sequence(root: Path, precision: Precision) -> dict[str, object]:
    """Per arm: why it failed, if it did, and the NLL of every task after the last stage."""
    root.mkdir()
    plan = make_plan(root)
    plan |= {"arms": arms(), "seeds": [0], "settings": {**settings_of(plan), "precision": precision}}
    run = prepare(plan, root / "out")
    run_all(run, (0,))
    found: Any = summarise_sequence(run.config, run.folder)
    return {
        name: {"failed": arm["seeds"]["0"]["failed"], "nll": arm["seeds"]["0"]["R"]["oracle"]["nll"]}
        for name, arm in found["arms"].items()
        if name != "base"
    }


def settings_of(plan: dict[str, object]) -> dict[str, object]:
    settings = plan["settings"]
    assert isinstance(settings, dict)
    return settings


def resume(root: Path) -> dict[str, object]:
    """The largest weight of a run, and how far the same run ends from it where it was interrupted in between."""
    files = make_files(root)
    execute(files.values, root / "whole")
    with pytest.raises(Interrupted):
        execute(files.values, root / "parts", Watcher(patience=4))
    execute(files.values, root / "parts")
    whole, parts = (load_file(RunFolder(root / name).adapter / WEIGHTS_FILE) for name in ("whole", "parts"))
    apart = max(float((whole[name] - parts[name]).abs().max()) for name in whole)
    return {"largest": max(float(tensor.abs().max()) for tensor in whole.values()), "apart": apart}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
