"""Fine-tuning: the encoder learns to keep labels apart; the head is fitted on its vectors afterwards, as ever.

Loss: cross entropy over labels of softmax(s · cos(v, p_label)), v being a text's vector and p one prototype a label,
learned too and started at the mean of the label's vectors. Sources: Wang et al. 2017, "NormFace"; Movshovitz-Attias
et al. 2017, "No Fuss Distance Metric Learning using Proxies".
The token embeddings stay as they are: words that no row holds keep their place among those that rows do hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.rows import LabelledText

from .layout import Layout
from .training import Say, TextModel, Tuning, keep_encoder, load_model, seeded, train

if TYPE_CHECKING:
    import torch


def tune_encoder(layout: Layout, rows: Sequence[LabelledText], cache: Path, tuning: Tuning, say: Say) -> Layout:
    """A copy of the encoder, tuned on `rows`, in `cache/<its digest>`. Minutes on a processor; `say` hears of progress.

    The same rows in the same order, seed and number of threads give the same weights. Raises `EncoderUnavailable`
    without torch.
    """
    with seeded(tuning.seed):
        import torch

        model = load_model(layout)
        model.get_input_embeddings().requires_grad_(requires_grad=False)
        text = TextModel(layout, model, [row.text for row in rows])
        names = sorted({row.label for row in rows})
        labels = torch.tensor([names.index(row.label) for row in rows])
        means = torch.zeros(len(names), layout.dimension).index_add_(0, labels, text.all_vectors(tuning.batch))
        prototypes = torch.nn.Parameter(means)

        def loss(picked: Sequence[int]) -> torch.Tensor:
            cosines = text.vectors(picked) @ torch.nn.functional.normalize(prototypes, dim=-1).T
            return torch.nn.functional.cross_entropy(tuning.scale * cosines, labels[list(picked)])

        train(text, loss, [{"params": [prototypes], "lr": tuning.prototype_rate}], tuning, say)
    return keep_encoder(layout, model, f"{short_name(layout)}-tuned", cache)


def short_name(layout: Layout) -> str:
    return layout.name.rpartition("/")[2]
