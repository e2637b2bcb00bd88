"""The plain training loop against TRL's SFTTrainer and PEFT in the transformers Trainer: tokens per second.

    python -m bench.training_peers [--python PYTHON] [--steps 25]

Needs the data folder (`../shared/data` or $BRANCHLINE_DATA). `--python` is that of an environment that has trl and
datasets and Branchline too; a peer that cannot be imported there is left out. Same base, adapter, first weights, rows,
loss on completions only, AdamW fused, float32, one thread. Each loop has its own process and they take turns step by
step; time is CPU time of the loop's process, its data included, per token that is not padding.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data import find_data
from .results import Row, write_results
from .training_arms import NEW, ROOT
from .turns import DRAWS, ratio_interval, take_turns

PEERS = {
    "trl_batches": "TRL SFTTrainer, our groups of rows",
    "transformers_batches": "PEFT in the transformers Trainer, our groups of rows",
    "trl_grouped": "TRL SFTTrainer, its own grouping by length",
    "transformers_grouped": "PEFT in the transformers Trainer, its own grouping by length",
}
WARM = 4


@dataclass(frozen=True)
class Step:
    """Seconds of a step and its tokens."""

    cpu: float
    wall: float
    tokens: int
    loss: float

    @property
    def per_token(self) -> float:
        return self.cpu / self.tokens


class Child:
    """A loop that waits for its turn."""

    def __init__(self, python: str, name: str, work: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._errors = work / f"{name}.err"
        with self._errors.open("w") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "bench.training_loops", name, str(work / name)],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    @property
    def failure(self) -> str:
        """The last line that it wrote before it ended."""
        return self._errors.read_text(encoding="utf-8").strip().rpartition("\n")[2]

    def answer(self) -> dict[str, Any] | None:
        """Its next answer; `None` where it ended instead."""
        line = self._process.stdout.readline() if self._process.stdout else ""
        return json.loads(line) if line else None

    def step(self) -> Step:
        if not self._process.stdin:
            raise RuntimeError("the loop's input is closed")
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        answer = self.answer()
        if answer is None:
            raise RuntimeError(f"a loop ended by itself: {self.failure}")
        return Step(**answer)

    def end(self) -> None:
        if self._process.stdin:
            self._process.stdin.close()
        self._process.wait(timeout=120)


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", default=sys.executable, help="of the environment to measure in")
    parser.add_argument("--steps", type=int, default=25, help="timed steps of every loop")
    arguments = parser.parse_args()
    find_data()
    with tempfile.TemporaryDirectory(prefix="branchline-peers-") as work:
        children, missing = start(arguments.python, Path(work))
        try:
            taken = take_turns({name: child.step for name, child in children.items()}, arguments.steps, warm=WARM)
        finally:
            for child in children.values():
                child.end()
    rows = list(result_rows(taken, missing, versions(arguments.python)))
    command = f"python -m bench.training_peers --python PYTHON --steps {arguments.steps}"
    write_results("training_peers", "The plain training loop beside others, one thread, float32", rows, command)


def start(python: str, work: Path) -> tuple[dict[str, Child], dict[str, str]]:
    """The loops that came up, and why the others did not."""
    children, missing = {}, {}
    for name in ("ours", *PEERS):
        (work / name).mkdir()
        child = Child(python, name, work)
        if child.answer() is None:
            missing[name] = child.failure
            child.end()
        else:
            children[name] = child
    return children, missing


def result_rows(
    taken: Mapping[str, Sequence[Step]], missing: Mapping[str, str], found: Mapping[str, str]
) -> Iterator[Row]:
    ours = taken["ours"]
    yield speed_row("plain loop", ours, f"{NEW}; " + ", ".join(f"{name} {one}" for name, one in found.items()))
    for name, what in PEERS.items():
        if name in taken:
            yield speed_row(what, taken[name])
        else:
            yield Row(what, None, "tokens/s", f"not importable: {missing[name]}"[:200])
    peers = {name: steps for name, steps in taken.items() if name != "ours"}
    for label, suffix in (("on our groups of rows", "batches"), ("as they group by themselves", "grouped")):
        rivals = [steps for name, steps in peers.items() if name.endswith(suffix)]
        if rivals:
            yield ratio_row(f"plain loop ÷ the faster peer, {label}", ours, rivals)


def speed_row(what: str, steps: Sequence[Step], note: str = "") -> Row:
    """Median over the steps, with the median wall time, which the machine's other work is part of."""
    wall = statistics.median(one.tokens / one.wall for one in steps)
    tokens = statistics.mean(one.tokens for one in steps)
    notes = [f"median of {len(steps)} steps of {tokens:,.0f} tokens", f"wall {wall:,.0f} on a shared machine"]
    value = 1 / statistics.median(one.per_token for one in steps)
    return Row(what, value, "tokens per CPU second", "; ".join([*notes, *([note] if note else [])]))


def ratio_row(what: str, ours: Sequence[Step], rivals: Sequence[Sequence[Step]]) -> Row:
    def ratio(chosen: Sequence[int]) -> float:
        best = min(statistics.median(steps[index].per_token for index in chosen) for steps in rivals)
        return best / statistics.median(ours[index].per_token for index in chosen)

    low, high = ratio_interval(len(ours), ratio)
    value = ratio(range(len(ours)))
    return Row(what, value, "×", f"target ≥ 1.0; 95 % of {DRAWS} redraws of the rounds: {low:.3f} to {high:.3f}")


def versions(python: str) -> dict[str, str]:
    """Versions of what is compared, as far as they are installed there."""
    code = (
        "import importlib.metadata as m, json; names = ['torch', 'transformers', 'peft', 'trl'];"
        "have = {d.metadata['Name'].lower(): d.version for d in m.distributions()};"
        "print(json.dumps({n: have[n] for n in names if n in have}))"
    )
    printed = subprocess.run([python, "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    found: dict[str, str] = json.loads(printed)
    return found


if __name__ == "__main__":
    main()
