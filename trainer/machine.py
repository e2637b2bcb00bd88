"""What a run computes on: device, precision and processes, through Accelerate.

Several processes (started by `torchrun` or `accelerate launch`) do the work of one: every one of them advances the
same stream of micro-batches and takes every n-th; their gradients are added up before hooks, clipping and the
optimiser see them. There is no wrapper around the model, so token weights stay exact and hooks see one model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .config import Precision
from .errors import ConfigInvalid, Interrupted, ProcessLost

Part = TypeVar("Part")
_TRUE, _FAILED, _INTERRUPTED = 1.0, 2.0, 3.0


@dataclass(frozen=True, slots=True)
class Machine:
    """One process that computes in float32 where the model is, or what `find_machine` found.

    `scaler` multiplies losses before the backward pass so that float16 gradients do not vanish.
    """

    accelerator: Any = None
    scaler: torch.amp.GradScaler | None = None

    @property
    def device(self) -> torch.device | None:
        """Where the model goes; `None`: where it is."""
        device: torch.device | None = self.accelerator.device if self.accelerator else None
        return device

    @property
    def processes(self) -> int:
        return int(self.accelerator.num_processes) if self.accelerator else 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files, prints and scores."""
        return self.accelerator is None or bool(self.accelerator.is_main_process)

    @property
    def may_overflow(self) -> bool:
        """Whether a gradient that is not finite only means that the float16 scale is still too large."""
        return self.scaler is not None and self.scaler.get_scale() > 1.0

    @property
    def stateful(self) -> tuple[ScalerState, ...]:
        return (ScalerState(self.scaler),) if self.scaler else ()

    def deal(self, parts: Sequence[Part]) -> Iterator[tuple[int, Part]]:
        """This process's share of `parts`, with each one's number among all."""
        first = int(self.accelerator.process_index) if self.accelerator else 0
        for number in range(first, len(parts), self.processes):
            yield number, parts[number]

    @contextlib.contextmanager
    def computing(self, model: Any) -> Iterator[None]:
        """Every forward pass of `model` runs in the run's precision while this lasts, whoever calls it; what is
        computed from its weights directly, and the backward pass, is left alone.
        """
        if self.accelerator is None:
            yield
            return
        entered: list[Any] = []

        def enter(*_: object) -> None:
            entered.append(self.accelerator.autocast())
            entered[-1].__enter__()

        def leave(*_: object) -> None:
            entered.pop().__exit__(None, None, None)

        handles = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def backward(self, loss: Tensor) -> None:
        scaled = self.scaler.scale(loss) if self.scaler else loss
        scaled.backward()  # type: ignore[no-untyped-call]  # torch leaves backward untyped

    def join_gradients(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Give every process the sum of all processes' gradients, in their true scale."""
        if self.processes > 1:
            flat = torch.cat([_gradient(one).flatten() for one in parameters])
            sizes = [one.numel() for one in parameters]
            totals = self._sum(flat).split(sizes)  # type: ignore[no-untyped-call]  # torch leaves split untyped
            for one, total in zip(parameters, totals, strict=True):
                one.grad = total.view_as(one).clone()
        if self.scaler:
            self.scaler.unscale_(optimizer)

    def gather_gradient(self, own: Tensor) -> Tensor:
        """The whole step's gradient by something that is no parameter, from what this process's backward passes gave:
        summed over the processes, in its true scale, 0 where it overflowed. After `join_gradients`, before `step`.
        """
        total = self._sum(own) if self.processes > 1 else own
        if self.scaler is None:
            return total
        return (total / self.scaler.get_scale()).nan_to_num(0.0, 0.0, 0.0)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Take the step; in float16 one whose gradient overflowed is left out and the scale is lowered."""
        if self.scaler:
            self.scaler.step(optimizer)
            self.scaler.update()
        else:
            optimizer.step()

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over the processes, the same on all of them."""
        if self.processes == 1:
            return list(values)
        summed: list[float] = self._sum(
            torch.tensor(values, dtype=torch.float64, device=self.accelerator.device)
        ).tolist()
        return summed

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag, true where it is on any process."""
        return tuple(total > 0 for total in self.sum([float(flag) for flag in flags]))

    def from_main(self, value: float) -> float:
        """The main process's value."""
        [shared] = self.sum([value if self.is_main else 0.0])
        return shared

    def on_main(self, work: Callable[[], object]) -> bool:
        """Do `work` in the main process while the others wait; whether what it returned counts as true.

        Where it raises, so do the others: `Interrupted` for that, `ProcessLost` for anything else.
        """
        if self.processes == 1:
            return bool(work())
        outcome = _FAILED
        try:
            if self.is_main:
                outcome = _TRUE if work() else 0.0
        except Interrupted:
            outcome = _INTERRUPTED
            raise
        finally:
            outcome = self.from_main(outcome)
        if outcome == _INTERRUPTED:
            raise Interrupted("interrupted in the main process", hint="the same command goes on from there")
        if outcome == _FAILED:
            raise ProcessLost("the main process of this run failed", hint="its own message says why")
        return outcome == _TRUE

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does what follows first, so that the others find what it cached."""
        if self.processes == 1:
            yield
            return
        with self.accelerator.main_process_first():
            yield

    def open_tracker(self, name: str, settings: Mapping[str, object]) -> None:
        """Begin what `log` writes to: a run called `name`. Nothing where no tracker was asked for."""
        if self.accelerator is not None and self.accelerator.log_with:
            plain = {key: value for key, value in settings.items() if isinstance(value, (bool, int, float, str))}
            self.accelerator.init_trackers(name, config=plain)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Hand figures of optimiser step `step` to the tracker, where there is one."""
        if self.accelerator is not None and self.accelerator.trackers:
            self.accelerator.log(dict(values), step=step)

    def close_tracker(self) -> None:
        if self.accelerator is not None and self.accelerator.trackers:
            self.accelerator.end_training()

    def _sum(self, value: Tensor) -> Tensor:
        try:
            total: Tensor = self.accelerator.reduce(value, reduction="sum")
        except RuntimeError as error:
            raise ProcessLost("another process of this run ended", hint="its own message says why") from error
        return total


@dataclass(frozen=True, slots=True)
class ScalerState:
    """The part of a checkpoint that holds the float16 scale."""

    scaler: torch.amp.GradScaler

    def state(self) -> Mapping[str, Any]:
        return self.scaler.state_dict()

    def restore(self, state: Mapping[str, Any]) -> None:
        self.scaler.load_state_dict(dict(state))


def find_machine(precision: Precision = "no", tracker: str | None = None, folder: Path | None = None) -> Machine:
    """The device and processes that Accelerate finds. Raises `ConfigInvalid` where they cannot do `precision` or
    the package of `tracker` is missing; a tracker that writes files writes below `folder`.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration

    on_cpu = not torch.accelerator.is_available()
    if precision == "fp16" and on_cpu:
        raise ConfigInvalid(["precision: fp16 needs a GPU, this machine has none"], hint="set bf16 or no")
    if tracker:
        require_tracker(tracker)
    # Accelerate keeps one precision for as long as a process lives; a sequence of runs may want several.
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=on_cpu,
        mixed_precision=precision,
        log_with=tracker,
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        # Scoring is the main process's alone; the others wait for as long as it takes.
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(days=1))],
    )
    return Machine(accelerator, accelerator.scaler)


def require_tracker(name: str) -> None:
    """Raise `ConfigInvalid` where Accelerate does not know the tracker or its package is not installed."""
    from accelerate.tracking import LoggerType, get_available_trackers

    known = sorted(str(one) for one in LoggerType if str(one) != "all")
    if name not in known:
        raise ConfigInvalid([f"tracker: unknown tracker {name!r}, known are {', '.join(known)}"])
    if name not in {str(one) for one in get_available_trackers()}:
        raise ConfigInvalid([f"tracker: {name} is not installed"], hint=f"install the package of {name}")


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
