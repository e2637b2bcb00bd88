"""Selective token masking: learn only what the starting model does not find too improbable.

    keep token t  ⇔  exp(−log p_start(y_t | y_<t)) ≤ τ

Dropped tokens stay in the input and leave the loss. Wu et al. 2025 (arXiv 2501.14315), who took τ = 2.5 and dropped 20
to 24 % of tokens. The wrong tool where the answer itself is improbable, such as codes or formats of one's own: there
it drops what was to be learned. Touches the run's own rows, not replayed ones.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.rows import sha256_json
from adapters.types import Json

from ..data import Encoded
from ..distillation.teacher import completion_nlls
from ..errors import DataInvalid
from ..folder import write_json
from .recipe import Context, Recipe
from .settings import Masking

LITTLE = 0.2


def build(settings: Masking, context: Context) -> Recipe:
    """Reads the starting model once, dropout off. Raises `DataInvalid` where no token is left, and
    `Interrupted`.
    """
    file = context.cache / f"masking-{sha256_json(settings.threshold)[:16]}.json"
    if not file.is_file():
        started = time.monotonic()
        nlls = completion_nlls(
            context.model, context.examples, context.batch_tokens, context.loaded.pad_token, context.observer
        )
        dropped = [improbable(one, settings.threshold) for one in nlls]
        write_json(file, {"dropped": dropped, "seconds": round(time.monotonic() - started, 2)})
    saved = json.loads(file.read_text(encoding="utf-8"))
    masked = [
        replace(example, dropped=example.dropped | set(dropped))
        for example, dropped in zip(context.examples, saved["dropped"], strict=True)
    ]
    mask = Mask({(one.prompt, one.completion): one.dropped for one in masked})
    kept = sum(one.supervised for one in masked) / context.supervised
    left_out = sum(not one.supervised for one in masked)
    _tell(context, settings, kept, left_out)
    report: dict[str, object] = {"kept_share": round(kept, 4), "rows_left_out": left_out, "seconds": saved["seconds"]}
    return Recipe(rewrite=(mask,), finish={"masking": _Report(report)})


def improbable(nlls: Tensor, threshold: float) -> list[int]:
    """Positions of one completion whose perplexity exp(nll) is above `threshold`; `nlls` (completion,) in nats."""
    return [int(at) for at in (nlls.double().exp() > threshold).nonzero().flatten()]


@dataclass(frozen=True, slots=True)
class Mask:
    """`dropped` by prompt and completion; a row of which nothing is left is left out."""

    dropped: Mapping[tuple[tuple[int, ...], tuple[int, ...]], frozenset[int]]

    def __call__(self, examples: Sequence[Encoded]) -> Sequence[Encoded]:
        masked = (replace(one, dropped=one.dropped | self.dropped[one.prompt, one.completion]) for one in examples)
        return tuple(one for one in masked if one.supervised)


@dataclass(frozen=True, slots=True)
class _Report:
    found: Json

    def __call__(self, model: Any, folder: Path) -> Json:
        return self.found


def _tell(context: Context, settings: Masking, kept: float, left_out: int) -> None:
    if math.isclose(kept, 0.0):
        raise DataInvalid(
            f"masking: every token's perplexity under the starting model is above {settings.threshold}",
            hint="raise its threshold, or leave masking out: the answers themselves are improbable",
        )
    if left_out:
        context.observer.say(f"masking: {left_out} of {len(context.examples)} rows have no token left")
    if kept < LITTLE:
        context.observer.say(
            f"masking keeps only {kept:.0%} of the tokens: it may drop what is to be learned; raise its threshold"
        )
