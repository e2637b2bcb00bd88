"""What fine-tuning and distillation share: texts as batches, a loop over epochs, and where the result is kept."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters.files import copy_file, make_folder

from ...errors import EncoderUnavailable
from .cache import replace_folder, tuned_layout
from .export import pool
from .layout import Layout, read_layout
from .onnx_encoder import batches
from .source import missing_package
from .tokens import load_tokenization, pad

if TYPE_CHECKING:
    import torch

Say = Callable[[str], None]
Loss = Callable[[Sequence[int]], "torch.Tensor"]
COPIED = ("*.json", "*/config.json")
CHUNK = 50  # batches; texts of similar length are put together within so many, which are drawn at random


@dataclass(frozen=True, slots=True)
class Tuning:
    """How long and how fast; all rates rise over the first tenth of the steps, then fall to 0."""

    epochs: int = 2
    batch: int = 32
    rate: float = 1e-4
    prototype_rate: float = 1e-3
    weight_decay: float = 0.01
    scale: float = 20.0  # s of the loss over prototypes
    seed: int = 0


def tuning_for(rows: int) -> Tuning:
    """As on CLINC150's validation part: 2 epochs for its 15,000 rows, 5 for 10 of each label, 1,500 in all."""
    return Tuning(epochs=min(5, max(2, round(30_000 / max(1, rows)))))


class TextModel:
    """A transformer in torch and the texts that it reads, cut and pooled as in serving."""

    def __init__(self, layout: Layout, model: Any, texts: Iterable[str]) -> None:
        tokenization = load_tokenization(layout)
        self.model = model
        self._layout = layout
        self._tokens = [tokenization.tokens(text) for text in texts]
        self.lengths = [len(row) for row in self._tokens]

    def vectors(self, picked: Sequence[int]) -> torch.Tensor:
        """(picked, dimension), rows of length 1."""
        import torch

        ids, mask = map(torch.from_numpy, pad([self._tokens[at] for at in picked], self._layout.pad_token))
        return pool(self.model(input_ids=ids, attention_mask=mask).last_hidden_state, mask, self._layout.pooling)

    def all_vectors(self, batch: int) -> torch.Tensor:
        """(texts, dimension) as in serving: no dropout, no gradient."""
        import torch

        self.model.eval()
        found = torch.zeros(len(self.lengths), self._layout.dimension)
        with torch.no_grad():
            for picked in batches(self.lengths, batch):
                found[picked] = self.vectors(picked)
        return found


def train(text: TextModel, loss: Loss, others: Sequence[dict[str, Any]], tuning: Tuning, say: Say) -> None:
    """AdamW on `loss` of batches that deal every text once an epoch.

    Trains what of `text.model` requires a gradient; `others` are groups of further parameters with their rates.
    """
    import torch
    from tqdm import tqdm

    own = [parameter for parameter in text.model.parameters() if parameter.requires_grad]
    optimiser = torch.optim.AdamW([{"params": own, "lr": tuning.rate}, *others], weight_decay=tuning.weight_decay)
    steps = tuning.epochs * -(-len(text.lengths) // tuning.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _rate_share(step, steps))
    order = random.Random(tuning.seed)  # noqa: S311  # an order, no secret
    text.model.train()
    for epoch in range(tuning.epochs):
        total = 0.0
        dealt = _deal(text.lengths, tuning.batch, order)
        for picked in tqdm(dealt, f"epoch {epoch + 1}", leave=False, disable=None):  # shown on a terminal
            found = loss(picked)
            optimiser.zero_grad()
            found.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(own, 1.0)
            optimiser.step()
            schedule.step()
            total += float(found.detach()) * len(picked)
        say(f"epoch {epoch + 1} of {tuning.epochs}: loss {total / len(text.lengths):.4f}")
    text.model.eval()


def load_model(layout: Layout) -> Any:
    """The transformer of `layout` in float32. Raises `EncoderUnavailable` without torch."""
    try:
        import torch
        from transformers import AutoModel
        from transformers.utils import logging
    except ImportError as error:
        raise missing_package(error) from error
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    try:
        model = AutoModel.from_pretrained(layout.folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError) as error:
        raise EncoderUnavailable(f"encoder {layout.name} cannot be read by transformers: {error!s:.200}") from error
    return model.to(torch.float32)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Torch's random numbers from `seed` on, and as before afterwards."""
    try:
        import torch
    except ImportError as error:
        raise missing_package(error) from error
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def keep_encoder(layout: Layout, model: Any, name: str, cache: Path) -> Layout:
    """A copy of the folder of `layout` with the weights and the config of `model`: `cache/<its digest>/<name>`.

    Where the same encoder is kept already, under whatever name, that one; a damaged one is replaced.
    """
    from safetensors.torch import save_file

    make_folder(cache)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".new-") as aside:
        staged = Path(aside) / "staged" / name
        for path in sorted(one for pattern in COPIED for one in layout.folder.glob(pattern)):
            make_folder((staged / path.relative_to(layout.folder)).parent)
            copy_file(path, staged / path.relative_to(layout.folder))
        model.config.name_or_path = ""  # where the folder lay makes no other encoder
        model.config.to_json_file(staged / "config.json", use_diff=False)  # defaults too: a layout is read without them
        save_file(model.state_dict(), staged / "model.safetensors", metadata={"format": "pt"})
        digest = read_layout(str(staged)).digest
        if (kept := tuned_layout(digest, cache)) is not None:
            return kept
        replace_folder(cache / digest, staged.parent, Path(aside))
    return read_layout(str(cache / digest / name))


def _deal(lengths: Sequence[int], batch: int, order: random.Random) -> list[list[int]]:
    """Every text once, in batches of similar length."""
    texts = list(range(len(lengths)))
    order.shuffle(texts)
    dealt: list[list[int]] = []
    for start in range(0, len(texts), CHUNK * batch):
        chunk = sorted(texts[start : start + CHUNK * batch], key=lengths.__getitem__)
        dealt += [chunk[at : at + batch] for at in range(0, len(chunk), batch)]
    order.shuffle(dealt)
    return dealt


def _rate_share(step: int, steps: int) -> float:
    warm = max(1, steps // 10)
    return min((step + 1) / warm, max(0.0, (steps - step) / max(1, steps - warm)))
