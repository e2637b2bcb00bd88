"""A fit as the command line asks for it: without an encoder, with one, or with one trained on the rows first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from adapters.home import Home
from adapters.output import note
from adapters.rows import LabelledText

from ..classify.encoding import Encoder, Precision

if TYPE_CHECKING:
    from ..classify.encoder.layout import Layout
    from ..classify.fit import Fitted, HeadName


@dataclass(frozen=True, slots=True)
class Chosen:
    """What the flags say of the fit itself."""

    encoder: str | None
    precision: Precision
    finetune: bool
    student: int | None
    coverage: float
    head: HeadName
    general_prompts: bool


def fit_rows(home: Home, rows: Sequence[LabelledText], calibration: Sequence[LabelledText], chosen: Chosen) -> Fitted:
    """Open the encoder, or train a copy of it on the rows, and fit. Raises `BadInput` and `EncoderUnavailable`."""
    from ..classify.encoder.opening import encoder_cache, open_encoder, open_layout
    from ..classify.fit import fit_and_judge
    from ..classify.general import unclaimed_prompts
    from ..classify.tuned_fit import fit_tuned

    cache = encoder_cache(home)
    general = unclaimed_prompts(rows) if chosen.general_prompts else []
    fit = partial(
        fit_and_judge, rows, coverage=chosen.coverage, calibration=calibration, head=chosen.head, general=general
    )
    if chosen.encoder is None:
        return fit()
    if not chosen.finetune and not chosen.student:
        opened = open_encoder(chosen.encoder, precision=chosen.precision, cache=cache)
        return fit(encoder=opened)

    def tune(rows: Sequence[LabelledText]) -> Encoder:
        return open_layout(_trained(rows, chosen, cache), chosen.precision, cache)

    return fit_tuned(rows, tune, coverage=chosen.coverage, calibration=calibration, head=chosen.head, general=general)


def _trained(rows: Sequence[LabelledText], chosen: Chosen, cache: Path) -> Layout:
    """The encoder tuned on `rows` where that is asked for, then the student of it where one is."""
    from ..classify.encoder.distilling import distil_encoder
    from ..classify.encoder.layout import read_layout
    from ..classify.encoder.training import tuning_for
    from ..classify.encoder.tuning import tune_encoder

    layout = read_layout(str(chosen.encoder))
    if chosen.finetune:
        note(f"tuning the encoder {layout.name} on {len(rows)} rows")
        layout = tune_encoder(layout, rows, cache, tuning_for(len(rows)), note)
    if chosen.student:
        note(f"distilling {layout.name} into {chosen.student} layers")
        layout = distil_encoder(layout, [row.text for row in rows], chosen.student, cache, tuning_for(len(rows)), note)
    return layout
