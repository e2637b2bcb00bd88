"""The Fisher information of ΔW, estimated sequence by sequence with hooks on the adapted layers.

For one sequence let L = Σ_t −log p(ŷ_t | y_<t) over its supervised positions, summed, never averaged. With the input
x_t (in,) of a layer and the gradient δ_t (out,) of L by the layer's output, base and adapter together,

    G = Σ_t δ_t x_tᵀ = ∂L/∂W = ∂L/∂ΔW          (out, in), no factor s, right at B = 0 too

Over all sequences, with T supervised tokens and P tokens that are not padding, prompts included:

    diagonal       F = Σ G∘G / T
    kron_diagonal  f_out = Σ δ∘δ / T,  f_in = Σ x∘x / P
    kfac           S = Σ δδᵀ / T,      C = Σ xxᵀ / P

The square is of each sequence's own gradient: the square of a batch's mean gradient is about 1/batch of it. Several
sequences are read at once all the same, for a layer's rows of a batch stay apart.

Labels ŷ: `sampled` from the model (the true Fisher, unbiased), `data` (the empirical Fisher, which is another matrix
wherever the model does not fit its labels: Kunstner et al. 2019, arXiv:1905.12558), or `exact`, the expectation over
every label of every position.
"""

from __future__ import annotations

import contextlib
import hashlib
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..batches import IGNORED, Batch, collate, group_by_length
from ..data import Encoded
from ..errors import ConfigInvalid, DataInvalid
from ..lora import LoraLayer, lora_layers
from ..methods.settings import Labels
from ..modes import evaluation_mode
from ..objective import predict
from .importance import Importance, Kind
from .sums import SUMS, Sums

EXACT_VOCABULARY = 1024  # `exact` costs one backward pass per position and label


class FisherEstimate:
    """The Fisher of every adapted layer at the model's present weights, batch by batch.

    Each `add` reads the model in eval mode and leaves parameters, their gradients, modes and torch's global generator
    as they were. A label drawn depends on `seed`, the example and the position alone, so that batch size, order and
    padding change nothing but rounding. `sums` says what is added up of a layer, see `fisher_sums`.
    """

    def __init__(
        self, model: Any, sums: Callable[[LoraLayer], Sums], labels: Labels, seed: int, adapter: str = "default"
    ) -> None:
        self._model = model
        self._labels = labels
        self._seed = seed
        self._layers = lora_layers(model, adapter)
        self._sums = [sums(layer) for layer in self._layers]
        self._tokens = self._positions = self._sequences = 0
        self._seconds = 0.0

    def add(self, batch: Batch, examples: Sequence[Encoded]) -> None:
        """`batch` holds `examples`, one a line. Raises `ConfigInvalid` for `exact` over too large a vocabulary."""
        started = time.perf_counter()
        batch = batch.to(self._layers[0].a.device)
        with evaluation_mode(self._model), torch.enable_grad(), _recorded(self._layers) as record:
            logits = predict(self._model, batch)
        padding = (batch.attention_mask == 0).unsqueeze(-1)
        inputs = [record[layer.name][0].detach().float().masked_fill(padding, 0.0) for layer in self._layers]
        outputs = [record[layer.name][1] for layer in self._layers]
        for one, x in zip(self._sums, inputs, strict=True):
            one.add_inputs(x)
        for pull in _pulls(logits.detach(), batch, examples, self._labels, self._seed):
            deltas = torch.autograd.grad(logits, outputs, pull, retain_graph=self._labels == "exact")
            for one, x, delta in zip(self._sums, inputs, deltas, strict=True):
                one.add_gradients(x, delta.float().masked_fill(padding, 0.0))
        self._tokens += batch.supervised
        self._positions += batch.tokens
        self._sequences += len(examples)
        self._seconds += time.perf_counter() - started

    def importance(self, kind: Kind) -> Importance:
        """The means so far. Raises `DataInvalid` where nothing was supervised."""
        if not self._tokens:
            raise DataInvalid("no row for the Fisher has a supervised token", hint="give rows with answers")
        curvatures = [one.curvatures(self._tokens, self._positions) for one in self._sums]
        layers = {name: curvature for layer in curvatures for name, curvature in layer.items()}
        counts = (self._tokens, self._tokens, self._positions, self._sequences, self._seconds)
        return Importance(kind, self._labels, layers, *counts)


def estimate_fisher(
    model: Any,
    examples: Sequence[Encoded],
    kind: Kind,
    *,
    labels: Labels = "sampled",
    seed: int = 0,
    pad_token: int = 0,
    batch_tokens: int = 2048,
    sums: Callable[[LoraLayer], Sums] | None = None,
) -> Importance:
    """`FisherEstimate` over `examples`, at most `batch_tokens` padded tokens at once; its T is that of `examples`."""
    estimate = FisherEstimate(model, sums or SUMS[kind], labels, seed)
    for group in group_by_length(range(len(examples)), [len(one) for one in examples], batch_tokens):
        chosen = [examples[index] for index in group]
        estimate.add(collate(chosen, pad_token), chosen)
    return estimate.importance(kind)


def choose_rows(examples: Sequence[Encoded], count: int, seed: int) -> list[Encoded]:
    """At most `count` of the examples, drawn by a hash of each: the order they come in changes nothing."""
    return sorted(examples, key=lambda one: _digest(one, seed))[:count]


@contextlib.contextmanager
def _recorded(layers: Sequence[LoraLayer]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """Inputs and outputs of the layers during a forward pass; outputs carry gradient even where no weight does."""
    record: dict[str, tuple[Tensor, Tensor]] = {}

    def listen(name: str) -> Callable[[Any, tuple[Tensor, ...], Tensor], None]:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            record[name] = (inputs[0], output if output.requires_grad else output.requires_grad_())

        return hook

    handles = [layer.module.register_forward_hook(listen(layer.name)) for layer in layers]
    try:
        yield record
    finally:
        for handle in handles:
            handle.remove()


def _pulls(logits: Tensor, batch: Batch, examples: Sequence[Encoded], labels: Labels, seed: int) -> Iterator[Tensor]:
    """∂L/∂logits (rows, predicted, vocabulary) of each pass: p − e_ŷ at supervised positions, 0 elsewhere.

    For `exact`, passes √p_y · (p − e_y) for one position and label each: their squares sum to the expectation, since
    scores of different positions have mean 0 and are drawn apart.
    """
    probabilities = logits.softmax(dim=-1)
    targets = batch.labels[:, -logits.shape[1] :]
    supervised = (targets != IGNORED).unsqueeze(-1)
    if labels == "exact":
        yield from _every_label(probabilities, supervised)
        return
    if labels == "sampled":
        targets = draw_labels(probabilities, batch, examples, seed)
    wanted = targets.clamp(min=0).unsqueeze(-1)
    yield probabilities.scatter_add(-1, wanted, -torch.ones_like(wanted, dtype=torch.float32)) * supervised


def _every_label(probabilities: Tensor, supervised: Tensor) -> Iterator[Tensor]:
    vocabulary = probabilities.shape[-1]
    if vocabulary > EXACT_VOCABULARY:
        raise ConfigInvalid(
            [f"labels=exact over {vocabulary} labels, the most is {EXACT_VOCABULARY}"], hint="use labels=sampled"
        )
    for position in range(probabilities.shape[1]):
        for label in range(vocabulary):
            pull = torch.zeros_like(probabilities)
            score = probabilities[:, position].clone()
            score[:, label] -= 1
            pull[:, position] = score * probabilities[:, position, label, None].sqrt()
            yield pull * supervised


def draw_labels(probabilities: Tensor, batch: Batch, examples: Sequence[Encoded], seed: int) -> Tensor:
    """One label (rows, predicted) from p (rows, predicted, vocabulary), by inverse distribution function.

    The uniform number is a function of `seed`, the example and the position in it. What is no token gets label 0.
    """
    columns = probabilities.shape[1]
    drawn = torch.zeros(probabilities.shape[:2], dtype=torch.long, device=probabilities.device)
    for line, example in enumerate(examples):
        draw = random.Random(_digest(example, seed))  # noqa: S311 - labels, not secrets
        numbers = torch.zeros(batch.labels.shape[1], dtype=torch.float64)
        numbers[batch.attention_mask[line].bool().cpu()] = torch.tensor(
            [draw.random() for _ in range(len(example))], dtype=torch.float64
        )
        cumulative = probabilities[line].double().cumsum(dim=-1)
        wanted = numbers[-columns:, None].to(cumulative.device) * cumulative[:, -1:]
        found = torch.searchsorted(cumulative, wanted, right=True).squeeze(-1)
        drawn[line] = found.clamp(max=probabilities.shape[-1] - 1)
    return drawn


def _digest(example: Encoded, seed: int) -> bytes:
    tokens = " ".join(map(str, (*example.prompt, -1, *example.completion)))
    return hashlib.sha256(f"{seed} {example.row} {tokens}".encode()).digest()
