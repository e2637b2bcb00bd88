"""Fine-tuning: the encoder learns to keep labels apart; the head is fitted on its vectors afterwards, as ever.

Loss: cross entropy over labels of softmax(s · cos(v, p_label)), v being a text's vector and p one prototype a label,
learned too and started at the mean of the label's vectors. Sources: Wang et al. 2017, "NormFace"; Movshovitz-Attias
et al. 2017, "No Fuss Distance Metric Learning using Proxies".
The token embeddings stay as they are: words that no row holds keep their place among those that rows do hold.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.files import copy_file, make_folder
from adapters.rows import LabelledText

from .export import pool
from .layout import Layout, read_layout
from .onnx_encoder import batches
from .source import missing_package
from .tokens import load_tokenization, pad

if TYPE_CHECKING:
    import torch

Say = Callable[[str], None]
OTHER_WEIGHTS = ("*.safetensors*", "*.bin", "*.onnx", "*.pt", "*.h5", "*.msgpack", "*.ot")
COPIED = ("*.json", "*/config.json")
CHUNK = 50  # batches; texts of similar length are put together within so many, which are drawn at random


@dataclass(frozen=True, slots=True)
class Tuning:
    """How long and how fast; both rates rise over the first tenth of the steps, then fall to 0."""

    epochs: int = 3
    batch: int = 32
    rate: float = 1e-4
    prototype_rate: float = 1e-3
    weight_decay: float = 0.01
    scale: float = 20.0  # s
    seed: int = 0


def tune_encoder(layout: Layout, rows: Sequence[LabelledText], cache: Path, tuning: Tuning, say: Say) -> Layout:
    """A copy of the encoder, tuned on `rows`, in `cache/<its digest>`. Minutes on a processor; `say` hears of progress.

    The same rows in the same order, seed and number of threads give the same weights. Raises `EncoderUnavailable`
    without torch.
    """
    try:
        import torch
        from safetensors.torch import save_file
        from transformers import AutoModel
    except ImportError as error:
        raise missing_package(error) from error
    make_folder(cache)
    with torch.random.fork_rng(), tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as aside:
        torch.manual_seed(tuning.seed)
        model = AutoModel.from_pretrained(layout.folder, local_files_only=True, use_safetensors=True)
        _Run(layout, model.to(torch.float32), rows, tuning, say).train()
        tuned = Path(aside) / f"{layout.name.rpartition('/')[2]}-tuned"
        for path in sorted(one for pattern in COPIED for one in layout.folder.glob(pattern)):
            make_folder((tuned / path.relative_to(layout.folder)).parent)
            copy_file(path, tuned / path.relative_to(layout.folder))
        save_file(model.state_dict(), tuned / "model.safetensors", metadata={"format": "pt"})
        return _place(tuned, cache)


def _place(tuned: Path, cache: Path) -> Layout:
    folder = cache / read_layout(str(tuned)).digest
    if not folder.exists():
        staged = tuned.parent / folder.name
        staged.mkdir()
        tuned.rename(staged / tuned.name)
        staged.rename(folder)
    return read_layout(str(folder / tuned.name))


class _Run:
    """One fine-tuning: the tokens, the prototypes, and the optimiser over both models."""

    def __init__(self, layout: Layout, model: Any, rows: Sequence[LabelledText], tuning: Tuning, say: Say) -> None:
        import torch

        names = sorted({row.label for row in rows})
        tokenization = load_tokenization(layout)
        self._layout, self._model, self._tuning, self._say = layout, model, tuning, say
        self._tokens = [tokenization.tokens(row.text) for row in rows]
        self._labels = torch.tensor([names.index(row.label) for row in rows])
        model.get_input_embeddings().requires_grad_(requires_grad=False)
        self._prototypes = torch.nn.Parameter(self._means(len(names)))

    def train(self) -> None:
        import torch
        from tqdm import tqdm

        tuning, count = self._tuning, -(-len(self._tokens) // self._tuning.batch)
        encoder = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        groups = [{"params": encoder, "lr": tuning.rate}, {"params": [self._prototypes], "lr": tuning.prototype_rate}]
        optimiser = torch.optim.AdamW(groups, weight_decay=tuning.weight_decay)
        shape = _schedule(tuning.epochs * count)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, shape)
        order = random.Random(tuning.seed)  # noqa: S311  # an order, no secret
        self._model.train()
        for epoch in range(tuning.epochs):
            total = 0.0
            for picked in tqdm(self._deal(order), f"epoch {epoch + 1}", leave=False, disable=None):  # on a terminal
                loss = self._loss(picked)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(encoder, 1.0)
                optimiser.step()
                schedule.step()
                total += float(loss.detach()) * len(picked)
            self._say(f"epoch {epoch + 1} of {tuning.epochs}: loss {total / len(self._tokens):.3f}")
        self._model.eval()

    def _loss(self, picked: Sequence[int]) -> torch.Tensor:
        import torch

        prototypes = torch.nn.functional.normalize(self._prototypes, dim=-1)
        cosines = self._vectors(picked) @ prototypes.T
        return torch.nn.functional.cross_entropy(self._tuning.scale * cosines, self._labels[list(picked)])

    def _vectors(self, picked: Sequence[int]) -> torch.Tensor:
        import torch

        ids, mask = map(torch.from_numpy, pad([self._tokens[at] for at in picked], self._layout.pad_token))
        return pool(self._model(input_ids=ids, attention_mask=mask).last_hidden_state, mask, self._layout.pooling)

    def _means(self, labels: int) -> torch.Tensor:
        """(labels, dimension): what the encoder makes of each label's rows before it is tuned."""
        import torch

        self._model.eval()
        sums = torch.zeros(labels, self._layout.dimension)
        with torch.no_grad():
            for picked in batches([len(row) for row in self._tokens], self._tuning.batch):
                sums.index_add_(0, self._labels[picked], self._vectors(picked))
        return sums

    def _deal(self, order: random.Random) -> list[list[int]]:
        """Every row once, in batches of similar length."""
        batch = self._tuning.batch
        rows = list(range(len(self._tokens)))
        order.shuffle(rows)
        dealt: list[list[int]] = []
        for start in range(0, len(rows), CHUNK * batch):
            chunk = sorted(rows[start : start + CHUNK * batch], key=lambda at: len(self._tokens[at]))
            dealt += [chunk[at : at + batch] for at in range(0, len(chunk), batch)]
        order.shuffle(dealt)
        return dealt


def _schedule(steps: int) -> Callable[[int], float]:
    warm = max(1, steps // 10)

    def share(step: int) -> float:
        return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))

    return share
