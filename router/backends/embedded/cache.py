"""Keys and values of the sequences in the batch, in slots that sequences enter and leave at any step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 64  # tokens; capacities are powers of two times this


@dataclass(slots=True)
class _Layer:
    keys: Tensor  # [slots, heads, capacity, head_dim]
    values: Tensor


class SlotCache:
    """Slot i holds its sequence's tokens at 0…length-1; the rest is masked. Used as `past_key_values` for one token.

    Rows are dense: `drop(i)` moves the last slot to i, as the caller must do with its own rows. Tensors grow by
    doubling, so that a step writes one token per row instead of copying the cache, and are freed when all slots are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._layers: list[_Layer] = []
        self._lengths: list[int] = []
        self._write_at = (torch.empty(0), torch.empty(0))
        self._visible = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def adopt(self, prompt: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Add a slot with the keys and values of a prompt, per layer [1, heads, length, head_dim]."""
        slot, length = len(self._lengths), prompt[0][0].shape[2]
        self._lengths.append(length)
        if not self._layers:
            self._layers = [_Layer(keys[:, :, :0], values[:, :, :0]) for keys, values in prompt]
        self._reserve(slot + 1, length)
        for layer, (keys, values) in zip(self._layers, prompt, strict=True):
            layer.keys[slot, :, :length] = keys[0]
            layer.values[slot, :, :length] = values[0]

    def drop(self, slot: int) -> None:
        """Free a slot; the last one takes its place."""
        last = len(self._lengths) - 1
        if last == 0:
            self._layers = []
        elif slot != last:
            length = self._lengths[last]
            for layer in self._layers:
                layer.keys[slot, :, :length] = layer.keys[last, :, :length]
                layer.values[slot, :, :length] = layer.values[last, :, :length]
        self._lengths[slot] = self._lengths[last]
        self._lengths.pop()

    def next_step(self) -> tuple[Tensor, Tensor]:
        """Make room for one token per slot; returns its positions [rows, 1] and what it may see [rows, 1, 1, keys]."""
        self._visible = max(self._lengths) + 1
        self._reserve(len(self._lengths), self._visible)
        lengths = torch.tensor(self._lengths, device=self._device)
        self._write_at = (torch.arange(len(self._lengths), device=self._device), lengths)
        seen = torch.arange(self._visible, device=self._device)[None, :] <= lengths[:, None]
        self._lengths = [length + 1 for length in self._lengths]
        return lengths[:, None], seen[:, None, None, :]

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Called by the model's attention: store one token per row, return all keys and values so far."""
        layer, (slots, positions) = self._layers[layer_idx], self._write_at
        layer.keys[slots, :, positions] = keys[:, :, 0]
        layer.values[slots, :, positions] = values[:, :, 0]
        rows = len(self._lengths)
        return layer.keys[:rows, :, : self._visible], layer.values[:rows, :, : self._visible]

    def get_seq_length(self, *_: object) -> int:
        """The longest sequence before this step, as transformers asks for it."""
        return self._visible - 1

    def _reserve(self, slots: int, length: int) -> None:
        have = self._layers[0].keys.shape
        if have[0] >= slots and have[2] >= length:
            return
        slots, length = max(have[0], _power_of_two(slots)), max(have[2], _BLOCK * _power_of_two(-(-length // _BLOCK)))
        for layer in self._layers:
            layer.keys, layer.values = _grown(layer.keys, slots, length), _grown(layer.values, slots, length)


def _power_of_two(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _grown(old: Tensor, slots: int, length: int) -> Tensor:
    # zeros, not empty: masked places are multiplied by a weight of 0, and 0 times a stray NaN is NaN
    new = old.new_zeros(slots, old.shape[1], length, old.shape[3])
    new[: old.shape[0], :, : old.shape[2]] = old
    return new
