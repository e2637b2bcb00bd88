"""Distillation: an encoder with fewer layers learns to give the vectors of the one it was cut from.

The student starts from every so-many-th layer of its teacher and learns 1 − cos(v_student, v_teacher) on texts; labels
are not needed. Half the layers take half the time. Sources: Sanh et al. 2019, "DistilBERT" (the start);
Reimers, Gurevych 2020, "Making Monolingual Sentence Embeddings Multilingual using Knowledge Distillation" (the loss).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import EncoderUnavailable
from .layout import Layout
from .training import Say, TextModel, Tuning, keep_encoder, load_model, seeded, train
from .tuning import short_name

if TYPE_CHECKING:
    import torch


def distil_encoder(layout: Layout, texts: Sequence[str], layers: int, cache: Path, tuning: Tuning, say: Say) -> Layout:
    """A student of `layers` layers of the encoder, in `cache/<its digest>`.

    Raises `EncoderUnavailable` where the encoder has no more layers than that, or they cannot be told apart.
    """
    with seeded(tuning.seed):
        teacher = TextModel(layout, load_model(layout), texts)
        wanted = teacher.all_vectors(tuning.batch)
        student = TextModel(layout, _cut(layout, teacher.model, layers), texts)
        student.model.get_input_embeddings().requires_grad_(requires_grad=False)

        def loss(picked: Sequence[int]) -> torch.Tensor:
            return 1 - (student.vectors(picked) * wanted[list(picked)]).sum(dim=-1).mean()

        train(student, loss, [], tuning, say)
    return keep_encoder(layout, student.model, f"{short_name(layout)}-{layers}-layers-tuned", cache)


def _cut(layout: Layout, model: Any, layers: int) -> Any:
    """`model` itself with `layers` of its layers, spread evenly, the last one among them."""
    import torch

    stack = getattr(getattr(model, "encoder", None), "layer", None)
    if not isinstance(stack, torch.nn.ModuleList) or not 0 < layers < len(stack):
        found = f"has {len(stack)} layers" if isinstance(stack, torch.nn.ModuleList) else "does not show its layers"
        raise EncoderUnavailable(f"encoder {layout.name} {found}, a student would have {layers}")
    kept = [round((at + 1) * len(stack) / layers) - 1 for at in range(layers)]
    model.encoder.layer = torch.nn.ModuleList([stack[at] for at in kept])
    model.config.num_hidden_layers = layers
    return model
