"""One tree of errors for the offline plane.

A message says what was found and what was expected; `hint` says in one line what to do about it.
"""

from __future__ import annotations

from collections.abc import Sequence

from adapters.errors import BranchlineError


class TrainerError(BranchlineError):
    """Base of every error this package raises on purpose."""


class ConfigInvalid(TrainerError):
    """Settings that cannot be trained with; `problems` lists every one of them."""

    def __init__(self, problems: Sequence[str], *, hint: str = "see `branchline train --help`") -> None:
        super().__init__("; ".join(problems), hint=hint)
        self.problems = tuple(problems)


class BaseUnusable(TrainerError):
    """A base that cannot be trained on: no tokenizer, no chat template, no layer to adapt."""


class DataInvalid(TrainerError):
    """Rows that cannot be turned into examples, or of which none is left."""


class LeakFound(TrainerError):
    """Rows that stand both in what is learned from and in what judges it."""


class DecisionsInvalid(TrainerError):
    """A decisions file that is malformed, of several classifiers, or without some of the rows."""


class NoSupervisedTokens(TrainerError):
    """A batch in which every label is masked: its mean loss does not exist."""


class Diverged(TrainerError):
    """The loss or its gradient is not a finite number."""


class CheckpointInvalid(TrainerError):
    """A saved training state that cannot be read back."""


class OutOfMemory(TrainerError):
    """A step or a batch of evaluation that does not fit into memory."""


class DiskFull(TrainerError):
    """A file of the run that cannot be written for want of space; what was written before is kept."""


class ProcessLost(TrainerError):
    """Another process of a run in several processes ended or failed."""


class FolderOccupied(TrainerError):
    """An output folder that holds the run of another configuration."""


class RankTooLarge(TrainerError):
    """An exact merge that needs more rank than engines load."""


class NoScaleKeeps(TrainerError):
    """A sweep in which no scale of the adapter keeps every guardrail."""


class HarnessUnusable(TrainerError):
    """lm-evaluation-harness that is not installed, or a task of it that does not serve as a guardrail."""


class NothingToCompare(TrainerError):
    """A live version for which there are no reference scores, or no answers to compare with them."""


class Degraded(TrainerError):
    """A live version that does worse than its reference, by more than is allowed and beyond chance."""


class Interrupted(TrainerError):
    """Somebody asked the run to stop; its state is on disk."""
