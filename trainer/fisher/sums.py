"""What is added up of each layer for each shape of Fisher: see `fisher` for the formulas."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..lora import LoraLayer
from .importance import Curvature, Diagonal, Kind, Kronecker


class Sums(Protocol):
    """What one layer's estimate adds up, in float32: x (rows, length, in), δ (rows, length, out), 0 at padding."""

    def add_inputs(self, x: Tensor) -> None:
        """Once per batch."""

    def add_gradients(self, x: Tensor, delta: Tensor) -> None:
        """Once per batch and pass; passes are independent draws, or parts of an expectation."""

    def curvatures(self, tokens: int, positions: int) -> dict[str, Curvature]:
        """The means, by the name they have in the importance."""


class DiagonalSums:
    def __init__(self, layer: LoraLayer) -> None:
        self._name = layer.name
        self._squares = torch.zeros(len(layer.b), layer.a.shape[1], device=layer.a.device)

    def add_inputs(self, x: Tensor) -> None:
        """Nothing: only products count."""

    def add_gradients(self, x: Tensor, delta: Tensor) -> None:
        for row_x, row_delta in zip(x, delta, strict=True):
            gradient = row_delta.T @ row_x
            self._squares.addcmul_(gradient, gradient)

    def curvatures(self, tokens: int, positions: int) -> dict[str, Curvature]:
        return {self._name: Diagonal(self._squares / tokens)}


class KronDiagonalSums:
    def __init__(self, layer: LoraLayer) -> None:
        self._name = layer.name
        self._out = torch.zeros(len(layer.b), device=layer.a.device)
        self._into = torch.zeros(layer.a.shape[1], device=layer.a.device)

    def add_inputs(self, x: Tensor) -> None:
        self._into += x.square().sum(dim=(0, 1))

    def add_gradients(self, x: Tensor, delta: Tensor) -> None:
        self._out += delta.square().sum(dim=(0, 1))

    def curvatures(self, tokens: int, positions: int) -> dict[str, Curvature]:
        return {self._name: Kronecker(((self._out / tokens, self._into / positions),))}


class KfacSums:
    def __init__(self, layer: LoraLayer) -> None:
        self._name = layer.name
        self._out = torch.zeros(len(layer.b), len(layer.b), device=layer.a.device)
        self._into = torch.zeros(layer.a.shape[1], layer.a.shape[1], device=layer.a.device)

    def add_inputs(self, x: Tensor) -> None:
        flat = x.flatten(0, 1)
        self._into.addmm_(flat.T, flat)

    def add_gradients(self, x: Tensor, delta: Tensor) -> None:
        flat = delta.flatten(0, 1)
        self._out.addmm_(flat.T, flat)

    def curvatures(self, tokens: int, positions: int) -> dict[str, Curvature]:
        return {self._name: Kronecker(((self._out / tokens, self._into / positions),))}


class FactorSums:
    """The diagonal Fisher of A and B apart: ∂L/∂B = s·G·Aᵀ and ∂L/∂A = s·Bᵀ·G, so that F_A = 0 wherever B = 0."""

    def __init__(self, layer: LoraLayer) -> None:
        self._layer = layer
        self._a, self._b = torch.zeros_like(layer.a), torch.zeros_like(layer.b)

    def add_inputs(self, x: Tensor) -> None:
        """Nothing: only products count."""

    def add_gradients(self, x: Tensor, delta: Tensor) -> None:
        a, b = self._layer.a.detach(), self._layer.b.detach() * self._layer.scale
        self._a += ((delta @ b).transpose(1, 2) @ x).square().sum(dim=0)
        self._b += (delta.transpose(1, 2) @ (x @ a.T) * self._layer.scale).square().sum(dim=0)

    def curvatures(self, tokens: int, positions: int) -> dict[str, Curvature]:
        name = self._layer.name
        return {f"{name}.A": Diagonal(self._a / tokens), f"{name}.B": Diagonal(self._b / tokens)}


SUMS: Mapping[Kind, Callable[[LoraLayer], Sums]] = {
    "diagonal": DiagonalSums,
    "kron_diagonal": KronDiagonalSums,
    "kfac": KfacSums,
}
