"""Which checkpoints are kept and judged, when there are enough, and that training itself sees nothing of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from adapters.evidence import Evaluation, Item, Score
from tests.trainer_base import Files, colour_rows, make_files, write_rows
from tests.trainer_runs import Watcher, execute
from trainer.errors import Interrupted
from trainer.select import Candidate, is_exhausted

BOUND = 0.02


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    torch.set_num_threads(1)
    return make_files(tmp_path_factory.mktemp("task"))


def candidate(step: int, score: float, *, nll: float = 1.0, rise: float = 0.0) -> Candidate:
    """A candidate whose 40 target items all have this score, and whose guardrail's NLL rises by `rise`."""
    target = evaluation(Score(0.0, 1.0, 1), Score(score, nll, 1))
    return Candidate(step, target, (evaluation(Score(1.0, 1.0, 1), Score(1.0, 1.0 + rise, 1)),))


def evaluation(base: Score, adapter: Score) -> Evaluation:
    items = tuple(Item(f"{number:064x}", base, adapter) for number in range(40))
    return Evaluation("items", "a" * 64, "exact_match", items)


def test_patience_counts_the_candidates_since_the_one_that_would_be_chosen() -> None:
    scored = [candidate(1, 0.1), candidate(2, 0.5), candidate(3, 0.4), candidate(4, 0.3)]
    assert [is_exhausted(scored[:count], BOUND, 2) for count in (1, 2, 3, 4)] == [False, False, False, True]
    assert not is_exhausted(scored, BOUND, 3)


def test_a_lower_nll_at_the_same_score_is_an_improvement() -> None:
    assert not is_exhausted([candidate(1, 0.5, nll=1.0), candidate(2, 0.5, nll=0.9)], BOUND, 1)


def test_a_better_target_that_breaks_a_guardrail_is_no_improvement() -> None:
    assert is_exhausted([candidate(1, 0.5), candidate(2, 0.9, rise=1.0)], BOUND, 1)
    assert not is_exhausted([candidate(1, 0.9, rise=1.0), candidate(2, 0.5)], BOUND, 1)


MISLED = {"lr": 0.1, "max_steps": 20, "checkpoints": 10, "patience": 2, "guardrails": []}


def test_a_run_that_gets_no_better_ends_early_and_resumed_it_ends_at_the_same_step(
    files: Files, tmp_path: Path
) -> None:
    """It learns, far too fast, to answer `no` where `yes` is wanted: soon the NLL of `yes` rises."""
    data = write_rows(tmp_path / "no.jsonl", [(asked, "no") for asked, _ in colour_rows(64)])
    values = {**files.values, **MISLED, "data": data}
    whole = execute(values, tmp_path / "whole")
    steps = whole["steps"]
    assert isinstance(steps, int)
    assert steps < 20
    assert steps % 2 == 0, "it ends at a checkpoint"
    with pytest.raises(Interrupted):
        execute(values, tmp_path / "resumed", StopAtScoring(steps / 20))
    resumed = execute(values, tmp_path / "resumed")
    assert (resumed["steps"], resumed["weights_digest"]) == (steps, whole["weights_digest"])


def execute_piecewise(values: Mapping[str, object], out: Path) -> Mapping[str, object]:
    """The run, interrupted after every few questions of the observer, in training and in scoring."""
    interruptions = 0
    while True:
        try:
            record = execute(values, out, Watcher(patience=3))
        except Interrupted:
            interruptions += 1
        else:
            assert interruptions > 2
            return record


def test_with_averages_dropout_and_accumulation_a_resumed_run_equals_the_whole_one(
    files: Files, tmp_path: Path
) -> None:
    values = {**files.values, "methods": ["ema:decay=0.9"], "dropout": 0.2, "accumulation": 2, "batch_tokens": 128}
    values |= {"max_steps": 6, "guardrails": []}
    whole, pieces = execute(values, tmp_path / "whole"), execute_piecewise(values, tmp_path / "pieces")
    assert (pieces["weights_digest"], pieces["steps"]) == (whole["weights_digest"], whole["steps"])


def test_an_average_is_kept_and_judged_and_the_training_goes_on_from_its_own_weights(
    files: Files, tmp_path: Path
) -> None:
    """Stopped at its end, the averaged run's state holds bit for bit what the plain run's does; its candidate not."""
    states, candidates = {}, {}
    for name, methods in (("plain", []), ("averaged", ["ema:decay=0.9"])):
        values = {**files.values, "methods": methods, "max_steps": 6, "guardrails": []}
        with pytest.raises(Interrupted):
            execute(values, tmp_path / name, StopAtScoring(1.0))
        work = tmp_path / name / "work"
        states[name] = load_file(work / "states/step-00000006/adapter/adapter_model.safetensors")
        candidates[name] = load_file(work / "candidates/step-00000006/adapter_model.safetensors")
    assert equal(states["averaged"], states["plain"])
    assert equal(candidates["plain"], states["plain"])
    assert not equal(candidates["averaged"], states["averaged"])


def equal(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> bool:
    return all(torch.equal(one[name], two[name]) for name in one)


class StopAtScoring(Watcher):
    """Asks to stop once the candidate at this progress of the training is being scored: it is saved by then."""

    def __init__(self, progress: float) -> None:
        super().__init__()
        self._progress = progress
        self._reached = False

    @property
    def stop_requested(self) -> bool:
        return self._reached

    def advance(self, what: str, done: float, total: float, note: str = "") -> None:
        self._reached = self._reached or (what == "training" and done >= self._progress)
