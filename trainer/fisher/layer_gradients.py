"""The gradient of a loss by ΔW of every adapted layer, which no parameter has as its own gradient.

    ∂L/∂ΔW = Σ δ xᵀ,   x (…, in) what the adapter reads, δ (…, out) = ∂L/∂(layer's output)

Read off the adapter itself: its A takes x, dropout included, and the gradient of its B's output is s·δ. So a forward
pass with the adapter switched off is not seen, and a term of the loss that depends on A and B alone is not in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..lora import LoraLayer

Receive = Callable[[str, Tensor, Tensor], None]
Wanted = Callable[[Any], bool]


def _always(module: Any) -> bool:
    return True


def listen(
    layers: Sequence[LoraLayer], receive: Receive, wanted: Wanted = _always, adapter: str = "default"
) -> list[RemovableHandle]:
    """From now on every backward pass calls `receive(layer name, x, δ)` in float32, once per layer and forward pass
    with gradient for which `wanted(layer's module)` held. Remove the handles to end it.
    """
    return [handle for layer in layers for handle in _listen(layer, receive, wanted, adapter)]


def _listen(layer: LoraLayer, receive: Receive, wanted: Wanted, adapter: str) -> list[RemovableHandle]:
    latest: list[Tensor] = []

    def take_input(_: Any, inputs: tuple[Tensor, ...]) -> None:
        latest[:] = [inputs[0].detach()]

    def take_output(_: Any, __: tuple[Tensor, ...], output: Tensor) -> None:
        x = latest.pop()
        if output.requires_grad and wanted(layer.module):
            output.register_hook(  # type: ignore[no-untyped-call]  # torch leaves it untyped
                lambda gradient: receive(layer.name, x.float(), gradient.float() / layer.scale)
            )

    first, last = layer.module.lora_A[adapter], layer.module.lora_B[adapter]
    return [first.register_forward_pre_hook(take_input), last.register_forward_hook(take_output)]
