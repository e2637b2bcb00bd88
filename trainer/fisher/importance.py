"""How much each direction of ΔW matters to what was learned: curvature per layer, stored, combined, measured with.

A curvature F, in nats per supervised token per squared unit of ΔW, prices a move D = U·V of a layer:

    Ω(D) = ½ vec(D)ᵀ F vec(D)

    diagonal       F (out, in)                Ω = ½ Σ F ∘ D ∘ D
    kron_diagonal  f_out (out,), f_in (in,)   Ω = ½ tr((Uᵀ diag(f_out) U)(V diag(f_in) Vᵀ))
    kfac           S (out, out), C (in, in)   Ω = ½ tr((Uᵀ S U)(V C Vᵀ))
    uniform        f ()                       Ω = ½ f Σ D ∘ D

D is never formed for the last three: with rank k they cost out²·k + in²·k at most. Around a start, D = ΔW − U*·V*,
the terms

    Ω = ½ tr((Uᵀ S U)(V C Vᵀ)) − tr((Uᵀ S U*)(V* C Vᵀ)) + ½ tr((U*ᵀ S U*)(V* C V*ᵀ))

leave S and C to be multiplied with ΔW's own factors alone: what the start decides is computed once.

Kirkpatrick et al. 2017 (arXiv:1612.00796) for the diagonal, Martens & Grosse 2015 (arXiv:1503.05671) for kfac,
Schwarz et al. 2018 (arXiv:1805.06370) for one running penalty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor

from ..errors import ConfigInvalid
from ..lora import Factors

Kind = Literal["diagonal", "kron_diagonal", "kfac", "uniform"]
Price = Callable[[Factors], Tensor]  # ΔW → Ω of its move, a scalar in nats per supervised token


class Curvature(Protocol):
    """The F of one layer. Immutable; linear: `scaled` and `plus` make weighted sums of curvatures exactly."""

    def omega(self, difference: Factors) -> Tensor:
        """Ω of the move, a scalar in nats per supervised token, differentiable in the move's factors."""

    def around(self, start: Factors) -> Price:
        """Ω of the move from `start` to a ΔW, for many ΔW."""

    def scaled(self, share: float) -> Self:
        """share · F."""

    def plus(self, other: Self) -> Self:
        """The curvature whose Ω is the sum of both."""

    def to(self, device: torch.device) -> Self:
        """The same on `device`."""


@dataclass(frozen=True, slots=True, eq=False)
class Diagonal:
    """One importance per entry of ΔW: `values` (out, in)."""

    values: Tensor

    def omega(self, difference: Factors) -> Tensor:
        return self._omega(difference.dense.float())

    def around(self, start: Factors) -> Price:
        dense = start.dense.float()
        return lambda delta: self._omega(delta.dense.float() - dense)

    def scaled(self, share: float) -> Diagonal:
        return Diagonal(self.values * share)

    def plus(self, other: Diagonal) -> Diagonal:
        return Diagonal(self.values + other.values)

    def to(self, device: torch.device) -> Diagonal:
        return Diagonal(self.values.to(device))

    def _omega(self, move: Tensor) -> Tensor:
        return 0.5 * (self.values * move.square()).sum()


@dataclass(frozen=True, slots=True, eq=False)
class Kronecker:
    """F = Σ_i out_i ⊗ into_i. A side is a matrix, its diagonal as a vector, or a number times the identity.

    A sum of Kronecker products is no Kronecker product. Adding the factors apart, as is common (Ritter et al. 2018,
    arXiv:1805.07810), also charges S_i ⊗ C_j of different tasks; here the terms are kept, so that sums are exact
    and cost grows with the number of tasks: one more r-sized trace per layer and task.
    """

    terms: tuple[tuple[Tensor, Tensor], ...]

    def omega(self, difference: Factors) -> Tensor:
        up, down = difference.up.float(), difference.down.float().T
        traces = [(_sandwich(up, out) * _sandwich(down, into)).sum() for out, into in self.terms]
        return 0.5 * torch.stack(traces).sum()

    def around(self, start: Factors) -> Price:
        up, down = start.up.float(), start.down.float().T
        moved_up = torch.cat([_times(out, up) for out, _ in self.terms], dim=1)
        moved_down = torch.cat([_times(into, down) for _, into in self.terms], dim=1)
        constant = self.omega(start)

        def price(delta: Factors) -> Tensor:
            cross = (delta.up.float().T @ moved_up) * (delta.down.float() @ moved_down)
            return self.omega(delta) - cross.sum() + constant

        return price

    def scaled(self, share: float) -> Kronecker:
        return Kronecker(tuple((out * share, into) for out, into in self.terms))

    def plus(self, other: Kronecker) -> Kronecker:
        return Kronecker((*self.terms, *other.terms))

    def to(self, device: torch.device) -> Kronecker:
        return Kronecker(tuple((out.to(device), into.to(device)) for out, into in self.terms))


@dataclass(frozen=True, slots=True, eq=False)
class Importance:
    """The curvature of every adapted layer by name, and what it was measured on.

    `tokens` is the T of the Laplace weight: the unique supervised tokens of the task, or tasks, that F speaks for,
    each faded by γ once per later task; it may be more than what F was `measured` on, which is in supervised tokens,
    as `positions` is in non-pad tokens, prompts included. `labels` says how the labels were found, `seconds` how long
    measuring took.
    """

    kind: Kind
    labels: str
    layers: Mapping[str, Curvature]
    tokens: float
    measured: int = 0
    positions: int = 0
    sequences: int = 0
    seconds: float = 0.0

    def omega(self, differences: Mapping[str, Factors]) -> Tensor:
        """Σ over layers of Ω(D), in nats per supervised token; `differences` names every layer of this."""
        return torch.stack([curvature.omega(differences[name]) for name, curvature in self.layers.items()]).sum()

    def to(self, device: torch.device) -> Importance:
        return replace(self, layers={name: curvature.to(device) for name, curvature in self.layers.items()})


def fold(old: Importance, new: Importance, gamma: float) -> Importance:
    """Online EWC: what is known of all tasks so far, after one more.

        T_cum = γ T_old + T_new        F_cum = (γ T_old F_old + T_new F_new) / T_cum

    Folded over tasks 1…t this is Σ γ^(t−i) T_i F_i / Σ γ^(t−i) T_i, again per token: T_cum · F_cum counts every
    task once. Raises `ConfigInvalid` where the two differ in kind, labels or layers.
    """
    _require_alike(old, new)
    total = gamma * old.tokens + new.tokens
    kept, added = gamma * old.tokens / total, new.tokens / total
    layers = {name: one.scaled(kept).plus(new.layers[name].scaled(added)) for name, one in old.layers.items()}
    return Importance(
        new.kind,
        new.labels,
        layers,
        total,
        old.measured + new.measured,
        old.positions + new.positions,
        old.sequences + new.sequences,
        old.seconds + new.seconds,
    )


def mean_entry(diagonal: Importance) -> Tensor:
    """Mean of a diagonal F over all entries of all layers."""
    values = [one.values for one in diagonal.layers.values() if isinstance(one, Diagonal)]
    return torch.stack([one.sum() for one in values]).sum() / sum(one.numel() for one in values)


def uniform(diagonal: Importance) -> Importance:
    """F replaced by its mean: the trace of a diagonal importance over its number of entries, all layers together."""
    mean = mean_entry(diagonal)
    flat = Kronecker(((mean, torch.ones_like(mean)),))
    return replace(diagonal, kind="uniform", layers=dict.fromkeys(diagonal.layers, flat))


class _Sandwich(torch.autograd.Function):
    """thinᵀ · side · thin, (k, k), for thin (n, k) and a symmetric side, which is multiplied with once, not twice: the
    gradient by thin is side · thin · (G + Gᵀ), and side · thin is there already.
    """

    @staticmethod
    def forward(context: Any, thin: Tensor, side: Tensor) -> Tensor:
        moved = _times(side, thin)
        context.save_for_backward(moved)
        return thin.T @ moved

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (moved,) = context.saved_tensors
        return moved @ (gradient + gradient.T), None


def _times(side: Tensor, thin: Tensor) -> Tensor:
    return side @ thin if side.dim() == 2 else side.reshape(-1, 1) * thin


def _sandwich(thin: Tensor, side: Tensor) -> Tensor:
    result: Tensor = _Sandwich.apply(thin, side)  # type: ignore[no-untyped-call]  # torch leaves apply untyped
    return result


def _require_alike(old: Importance, new: Importance) -> None:
    so_far, now = ({"kind": one.kind, "labels": one.labels, "layers": ", ".join(one.layers)} for one in (old, new))
    problems = [f"{what}: {so_far[what]:.80} so far, {now[what]:.80} now" for what in now if so_far[what] != now[what]]
    if problems:
        raise ConfigInvalid(problems, hint="run every stage with the same method settings and the same targets")
