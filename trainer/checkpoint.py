"""A run's state on disk, complete or absent: what makes resumed equal to uninterrupted."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from .batches import BatchSource
from .errors import CheckpointInvalid
from .methods.recipe import Stateful
from .model import load_weights, save_adapter

_STATE = "state.pt"
_POSITION = "position.json"


@dataclass(frozen=True, slots=True)
class Position:
    """How far a run has come: optimiser steps, seconds and tokens of training, the steps kept as candidates,
    and the loss of every step in nats per supervised token.
    """

    step: int = 0
    seconds: float = 0.0
    tokens: int = 0
    candidates: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()

    @property
    def at_point(self) -> bool:
        """Whether the latest step was kept as a candidate."""
        return bool(self.candidates) and self.candidates[-1] == self.step


def save_checkpoint(
    folder: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: BatchSource,
    position: Position,
    base_id: str,
    parts: Sequence[Stateful] = (),
) -> None:
    """Write weights, optimiser, batch position and the methods' `parts` as `folder/step-N`, then drop older ones.

    Where that fails the older one is still there. No random state: the loop derives what it draws from the step.
    """
    target = folder / f"step-{position.step:08d}"
    aside = folder / "writing"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        save_adapter(model, aside / "adapter", base_id)
        state = {"optimizer": optimizer.state_dict(), "parts": [dict(part.state()) for part in parts]}
        (aside / _STATE).write_bytes(_pickled(state))  # not by torch itself, which hides why a file cannot be written
        written = {"position": asdict(position), "batches": dict(batches.state())}
        (aside / _POSITION).write_text(json.dumps(written), encoding="utf-8")
        for name in (_STATE, _POSITION):
            with (aside / name).open("rb") as file:
                os.fsync(file.fileno())
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(target, ignore_errors=True)
    aside.replace(target)
    for older in folder.glob("step-*"):
        if older != target:
            shutil.rmtree(older, ignore_errors=True)


def restore_checkpoint(
    folder: Path,
    model: Any,
    optimizer: torch.optim.Optimizer,
    batches: BatchSource,
    parts: Sequence[Stateful] = (),
) -> Position | None:
    """Put everything back to the latest checkpoint under `folder`; `None` where there is none.

    Raises `CheckpointInvalid` for a state that cannot be read.
    """
    latest = max(folder.glob("step-*"), default=None)
    if latest is None:
        return None
    try:
        written = json.loads((latest / _POSITION).read_text(encoding="utf-8"))
        state = torch.load(latest / _STATE, weights_only=True, map_location=model.device)
        load_weights(model, latest / "adapter")
        optimizer.load_state_dict(state["optimizer"])
        batches.restore(written["batches"])
        for part, saved in zip(parts, state["parts"], strict=True):
            part.restore(saved)
        return _position(written["position"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointInvalid(
            f"the saved state {latest.name} cannot be read: {' '.join(str(error).split())[:200]}",
            hint="start again with a fresh --out",
        ) from error


def _pickled(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _position(value: Mapping[str, Any]) -> Position:
    return Position(**{**value, "candidates": tuple(value["candidates"]), "losses": tuple(value["losses"])})
