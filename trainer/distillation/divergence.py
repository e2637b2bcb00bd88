"""KL divergences between next-token distributions, in nats per position, in float32."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

from ..batches import IGNORED, Batch

_NEVER = -1e30  # finite, so that 0 · (log p − log q) is 0 and not NaN


def supervised_logits(logits: Tensor, batch: Batch) -> Tensor:
    """The rows of `logits` (examples, predicted, vocabulary) that predict a supervised token, example by example:
    (supervised, vocabulary), differentiable.
    """
    chosen = (batch.labels[:, -logits.shape[1] :] != IGNORED).flatten().nonzero().squeeze(1)
    flat = logits.flatten(0, 1)
    return flat if len(chosen) == len(flat) else flat.index_select(0, chosen)


def supervised_targets(batch: Batch) -> Tensor:
    """The supervised tokens in the order of `supervised_logits`: (supervised,)."""
    return batch.labels[batch.labels != IGNORED]


def token_kl(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(p_teacher^τ ‖ p_student^τ) of each position, p^τ = softmax(logits / τ): (positions, vocabulary) twice to
    (positions,). Exactly 0 where the logits are the same bits.
    """
    p, q = (log_softmax(logits.float() / temperature, dim=-1) for logits in (teacher, student))
    return kl_div(q, p, reduction="none", log_target=True).sum(dim=-1)


def without_targets(logits: Tensor, targets: Tensor) -> Tensor:
    """`logits` (positions, vocabulary) with each position's own target made impossible, so that softmax renormalises
    over all other tokens.
    """
    return logits.scatter(-1, targets.unsqueeze(-1), _NEVER)
