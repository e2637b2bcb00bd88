"""What each process of a two-process run does in `test_trainer_processes`: `python -m tests.trainer_worker FOLDER`.

The folder holds the task's files. Runs go to folders in it, and what this process met to `met-RANK.json`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from tests.trainer_base import Files
from tests.trainer_runs import Watcher, execute
from trainer.errors import DiskFull, TrainerError
from trainer.folder import RunFolder
from trainer.machine import find_machine


def main(root: Path) -> None:
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    values = Files.found(root).values | {"dropout": 0.2, "accumulation": 2, "batch_tokens": 128}
    met: dict[str, str] = {}

    def meet(name: str, work: Callable[[], object]) -> None:
        try:
            work()
        except TrainerError as error:
            met[name] = type(error).__name__

    execute(values, root / "two")
    execute({**values, "accumulation": 4}, root / "two-by-four")
    execute(values | methods_of(root), root / "two-methods")
    # Only the second process is asked to stop.
    meet("stop", lambda: execute(values, root / "resumed", Watcher(patience=3 if rank else None)))
    met["stopped at"] = ", ".join(one.name for one in RunFolder(root / "resumed").states.glob("step-*"))
    machine = find_machine()
    machine.on_main(lambda: None)  # nobody goes on before everybody has looked
    execute(values, root / "resumed")
    meet("uneven", lambda: execute({**values, "accumulation": 3}, root / "uneven"))
    meet("failure", lambda: machine.on_main(fail))
    (root / f"met-{rank}.json").write_text(json.dumps(met), encoding="utf-8")
    if rank:
        os._exit(0)
    meet("vanished", lambda: machine.sum([1.0]))
    (root / f"met-{rank}.json").write_text(json.dumps(met), encoding="utf-8")
    os._exit(0)  # the other process is gone: there is nobody left to say goodbye to


def methods_of(root: Path) -> dict[str, object]:
    """A run with every kind of part: measured before the first step, cached, hooked, mixed in, averaged."""
    named = ("ewc", "l2", "si", "replay:share=0.3", "distill:teacher=cached,draws=4", "projection:rows=4", "ema")
    return {"past": [root / "past.jsonl"], "methods": named, "max_steps": 4}


def fail() -> None:
    raise DiskFull("a file of the run cannot be written")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
