"""One forward for rows of different adapters and of the base.

For a linear layer and a batch whose rows use the adapters 1…K, the low-rank factors are laid side by side,

    down = [A₁; …; A_K]          [Σ rank, in]
    up   = [s₁B₁ … s_K B_K]      [out, Σ rank]
    y   += (x downᵀ, zero where a column is not of the row's own adapter) upᵀ

so a layer costs two matrix products however many adapters are in the batch (PEFT's mixed batch loops over them).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class LowRank:
    """One layer's update: `down` [rank, in], `up` [out, rank] with the scaling folded in."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """The layers of one version, by module name. Two are the same only if they are the same object."""

    layers: Mapping[str, LowRank]


@dataclass(frozen=True, slots=True)
class _Stack:
    """The factors of several adapters side by side; `ranks` has one entry per adapter, 0 where it skips the layer."""

    down: Tensor
    up: Tensor
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Delta:
    """A stack and, unless every row uses all of it, the columns [rows, 1, Σ rank] that are not the row's own."""

    down: Tensor
    up: Tensor
    foreign: Tensor | None


Binding = Mapping[str, _Delta]


class LoraLayers:
    """Hooks on the linear layers of `model`; which adapter each row uses is bound per forward. One thread only."""

    def __init__(self, model: nn.Module) -> None:
        self.linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        self._bound: Binding = {}
        self._stacked: tuple[tuple[Adapter, ...], dict[str, _Stack]] = ((), {})
        for name, module in self.linears.items():
            module.register_forward_hook(self._hook(name))

    def bind(self, rows: Sequence[Adapter | None]) -> Binding:
        """What the layers must add for a batch whose rows use these adapters (`None`: the base)."""
        adapters = tuple(dict.fromkeys(row for row in rows if row is not None))
        stacks = self._stacks(adapters)
        owners = torch.tensor([-1 if row is None else adapters.index(row) for row in rows])
        mixed = len(set(rows)) > 1
        foreign: dict[tuple[int, ...], Tensor] = {}
        deltas: dict[str, _Delta] = {}
        for name, stack in stacks.items():
            if mixed and stack.ranks not in foreign:
                foreign[stack.ranks] = _foreign(stack.ranks, owners).to(stack.down.device)
            deltas[name] = _Delta(stack.down, stack.up, foreign.get(stack.ranks))
        return deltas

    @contextmanager
    def bound(self, binding: Binding) -> Iterator[None]:
        """Apply `binding` to the forwards inside."""
        self._bound = binding
        try:
            yield
        finally:
            self._bound = {}

    def _stacks(self, adapters: tuple[Adapter, ...]) -> dict[str, _Stack]:
        """Side-by-side factors; those of the last set of several adapters are kept, for it changes rarely."""
        if len(adapters) <= 1:
            return _stack(adapters)
        if self._stacked[0] != adapters:
            self._stacked = (adapters, _stack(adapters))
        return self._stacked[1]

    def _hook(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def add_delta(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            delta = self._bound.get(name)
            if delta is None:
                return output
            hidden = functional.linear(args[0], delta.down)
            if delta.foreign is not None:
                hidden = hidden.masked_fill(delta.foreign, 0.0)
            return output + functional.linear(hidden, delta.up)

        return add_delta


def _stack(adapters: tuple[Adapter, ...]) -> dict[str, _Stack]:
    names = dict.fromkeys(name for adapter in adapters for name in adapter.layers)
    return {name: _stack_layer(name, adapters) for name in names}


def _stack_layer(name: str, adapters: tuple[Adapter, ...]) -> _Stack:
    layers = [adapter.layers.get(name) for adapter in adapters]
    present = [layer for layer in layers if layer is not None]
    ranks = tuple(0 if layer is None else len(layer.down) for layer in layers)
    if len(present) == 1:
        return _Stack(present[0].down, present[0].up, ranks)
    return _Stack(
        torch.cat([layer.down for layer in present]), torch.cat([layer.up for layer in present], dim=1), ranks
    )


def _foreign(ranks: tuple[int, ...], owners: Tensor) -> Tensor:
    """True at [row, 0, column] where the column belongs to another adapter than the row's."""
    columns = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
    return (columns[None, :] != owners[:, None]).unsqueeze(1)
