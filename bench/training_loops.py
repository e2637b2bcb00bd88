"""One training loop in a process of its own, which takes a step whenever it is told to: `bench.training_peers`' child.

    python -m bench.training_loops NAME WORK

Each line on standard input lets it take one step; it answers with the step's seconds, loss and tokens that are not
padding. All train the same LoRA adapter on the same base from the same weights. `*_batches` loops read Branchline's own
groups of rows in its order through their own collators, `*_grouped` ones a fixed number of rows that they group by
length themselves.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from trainer.batches import plan_epoch
from trainer.data import Encoded

from .data import find_data
from .training_arms import BATCH_TOKENS, Arm, Seconds, Stage

_STEPS = 1000  # more than are asked for


class Pace:
    """The line to the parent; what anything else prints goes to standard error."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._started = Seconds.now()

    def wait(self) -> bool:
        """Whether there is to be another step; its time begins now."""
        go_on = bool(sys.stdin.readline())
        self._started = Seconds.now()
        return go_on

    def answer(self, **values: object) -> None:
        took = self._started.since()
        print(json.dumps({"cpu": took.cpu, "wall": took.wall, **values}), file=self._answers, flush=True)


def main() -> None:
    name, work = sys.argv[1:]
    torch.set_num_threads(1)
    pace = Pace()
    loop = LOOPS[name]
    arm = Stage(Path(work), find_data(), "no").build((), first=True)
    loop(arm, pace)


def ours(arm: Arm, pace: Pace) -> None:
    """What `branchline train` runs without methods."""
    steps = arm.steps(arm.batches())
    pace.answer(ready=True)
    while pace.wait():
        report = next(steps)
        pace.answer(loss=report.loss, tokens=report.tokens)


def transformers_batches(arm: Arm, pace: Pace) -> None:
    _run(_transformers(arm, planned=True), pace)


def transformers_grouped(arm: Arm, pace: Pace) -> None:
    _run(_transformers(arm, planned=False), pace)


def trl_batches(arm: Arm, pace: Pace) -> None:
    _run(_trl(arm, planned=True), pace)


def trl_grouped(arm: Arm, pace: Pace) -> None:
    _run(_trl(arm, planned=False), pace)


def _transformers(arm: Arm, *, planned: bool) -> Any:
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    kind = _planned(Trainer, arm) if planned else Trainer
    settings = TrainingArguments(**_settings(arm), remove_unused_columns=False)
    collator = DataCollatorForSeq2Seq(arm.loaded.tokenizer)
    return kind(model=arm.model, args=settings, train_dataset=_Rows(arm.context.examples), data_collator=collator)


def _trl(arm: Arm, *, planned: bool) -> Any:
    # Not in this project's environment, and without types.
    datasets, trl = import_module("datasets"), import_module("trl")
    kind = _planned(trl.SFTTrainer, arm) if planned else trl.SFTTrainer
    dataset = datasets.Dataset.from_list([_row(example) for example in arm.context.examples])
    settings = trl.SFTConfig(
        **_settings(arm),
        gradient_checkpointing=False,
        bf16=False,
        max_length=None,
        packing=False,  # without a flash kernel packed rows would see each other
        dataset_kwargs={"skip_prepare_dataset": True},
    )
    return kind(model=arm.model, args=settings, train_dataset=dataset, processing_class=arm.loaded.tokenizer)


def _settings(arm: Arm) -> dict[str, Any]:
    """Of both peers: as the plain loop has it, and nothing that costs time and is not training."""
    examples = arm.context.examples
    rows = round(BATCH_TOKENS / (sum(map(len, examples)) / len(examples)))
    return {
        "output_dir": str(arm.config.out),
        "per_device_train_batch_size": rows,
        "train_sampling_strategy": "group_by_length",
        "max_steps": _STEPS,
        "learning_rate": arm.config.lr,
        "lr_scheduler_type": "linear",
        "warmup_steps": int(arm.config.warmup * _STEPS),
        "weight_decay": arm.config.weight_decay,
        "max_grad_norm": arm.config.grad_clip,
        "optim": "adamw_torch_fused",
        "seed": arm.config.seed,
        "use_cpu": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


class _Rows(torch.utils.data.Dataset[Mapping[str, Sequence[int]]]):
    """Rows as the peers' collators take them."""

    column_names = ("input_ids", "labels")

    def __init__(self, examples: Sequence[Encoded]) -> None:
        self._rows = [_row(example) for example in examples]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Mapping[str, Sequence[int]]:
        return self._rows[index]


def _row(example: Encoded) -> dict[str, list[int]]:
    ids = [*example.prompt, *example.completion]
    return {"input_ids": ids, "labels": [-100] * len(example.prompt) + list(example.completion)}


def _planned(kind: Any, arm: Arm) -> Any:
    """The trainer class `kind`, reading Branchline's groups of rows in its order."""
    lengths = [len(example) for example in arm.context.examples]
    plan = plan_epoch(lengths, arm.config.batch_tokens, seed=arm.config.seed, epoch=0)

    class Planned(kind):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return torch.utils.data.DataLoader(self.train_dataset, batch_sampler=plan, collate_fn=self.data_collator)

    return Planned


def _run(trainer: Any, pace: Pace) -> None:
    """Train at the parent's pace: a step's time runs from the end of the one before, so its data are in it."""
    from transformers import TrainerCallback

    tokens: list[int] = []
    losses: list[float] = []

    class Paced(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            pace.answer(ready=True)
            pace.wait()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            total = float(trainer._tr_loss)
            losses.append(total)
            loss = total - (losses[-2] if len(losses) > 1 else 0.0)
            pace.answer(loss=loss, tokens=tokens[state.global_step - 1])
            control.should_training_stop = not pace.wait()

    collate = trainer.data_collator

    def counting(rows: Sequence[Mapping[str, Sequence[int]]]) -> Any:
        tokens.append(sum(len(row["input_ids"]) for row in rows))
        return collate(rows)

    trainer.data_collator = counting
    trainer.add_callback(Paced())
    trainer.train()


LOOPS: Mapping[str, Callable[[Arm, Pace], None]] = {
    "ours": ours,
    "trl_batches": trl_batches,
    "transformers_batches": transformers_batches,
    "trl_grouped": trl_grouped,
    "transformers_grouped": transformers_grouped,
}

if __name__ == "__main__":
    main()
