"""Peak memory of one arm of the trainer's cost benchmark, read in a process of its own.

    python -m bench.training_memory PRECISION FOLDER [METHOD …]

`bench.training_cost` starts it; FOLDER is where that one keeps its earlier stage.
"""

from __future__ import annotations

import gc
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from .data import find_data
from .training_arms import ON_GPU, ROOT, Stage
from .training_steps import WARM, Runner


def main() -> None:
    """Print the peak as JSON."""
    precision, work, *methods = sys.argv[1:]
    torch.set_num_threads(1)
    print(json.dumps(peak_of(Stage(Path(work), find_data(), precision), methods)))


def read_memory(stage: Stage, name: str, methods: Sequence[str]) -> dict[str, float]:
    """Have a process of its own take steps of the arm, unless one did in the same folder; in MiB."""
    kept = stage.work / f"peak-{stage.precision}-{name.replace(' ', '_')}.json"
    if not kept.exists():
        kept.write_text(json.dumps(_measure(stage, methods)), encoding="utf-8")
    found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
    return found


def _measure(stage: Stage, methods: Sequence[str]) -> dict[str, float]:
    # Freed blocks go back at once: what is resident is what is in use, not what the one-time work once needed.
    small = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    command = [sys.executable, "-m", "bench.training_memory", stage.precision, str(stage.work), *methods]
    environment = {**os.environ, **small, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True, text=True, cwd=ROOT)
    found: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return found


def peak_of(stage: Stage, methods: Sequence[str]) -> dict[str, float]:
    if ON_GPU:
        return {"imported": 0.0, "peak": gpu_peak(stage, methods)}
    imported = resident("VmRSS")
    runner = Runner(stage.build(methods))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    for _ in range(WARM + 2):
        runner.step()
    return {"imported": imported, "peak": resident("VmHWM")}


def gpu_peak(stage: Stage, methods: Sequence[str]) -> float:
    """MiB that tensors hold at most on the GPU during steps."""
    runner = Runner(stage.build(methods))
    gc.collect()
    torch.accelerator.reset_peak_memory_stats()
    for _ in range(WARM + 2):
        runner.step()
    return float(torch.accelerator.max_memory_allocated()) / 2**20


def resident(what: str) -> float:
    """MiB of this process by the kernel's name for it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else float("nan")


if __name__ == "__main__":
    main()
