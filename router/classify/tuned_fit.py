"""Fitting with a fine-tuned encoder: calibration rows are kept from the tuning, too.

An encoder tuned on a row knows that row, so out-of-fold scores on its vectors would be too good, and tuning once a
fold takes too long. One tenth of each label's rows is therefore held out of the tuning; temperature, score and
threshold are learned on them from a head that never saw them. The final head is fitted on all rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from adapters.rows import LabelledText

from .calibration import row_digest
from .classifier import BASE
from .encoding import Encoder
from .features import reading
from .fit import DEFAULT_COVERAGE, Fitted, HeadName, distinct_rows, fit_and_judge

Tune = Callable[[Sequence[LabelledText]], Encoder]
HELD_OUT = 10  # one row in so many, at least one of each label that has two


def fit_tuned(
    rows: Sequence[LabelledText],
    tune: Tune,
    *,
    coverage: float = DEFAULT_COVERAGE,
    calibration: Sequence[LabelledText] = (),
    seed: int = 0,
    head: HeadName = "auto",
    general: Sequence[str] = (),
) -> Fitted:
    """`fit_and_judge` with the encoder that `tune` makes of the rows; given `calibration` rows, of all of them.

    Rows reach `tune` without repeats, in an order that does not depend on the given one.
    Raises what `fit_and_judge` and `tune` raise.
    """
    rows = distinct_rows(rows, coverage)
    fit = partial(fit_and_judge, coverage=coverage, seed=seed, head=head, general=general)
    if calibration:
        return fit(rows, calibration=calibration, encoder=tune(rows))
    kept, held = split(rows, seed)
    if all(row.label == BASE for row in held):
        kept, held = rows, []
    encoder = tune(kept)
    judged = fit(kept, calibration=held, encoder=encoder)
    if not held:
        return judged
    return fit(rows, calibration=judged.judged, encoder=encoder)


def split(rows: Sequence[LabelledText], seed: int) -> tuple[list[LabelledText], list[LabelledText]]:
    """Rows to tune on and rows held out, each label dealt evenly; a label's only row is never held out, nor is a text
    that differs from another in case and blanks alone.

    Does not depend on the order of `rows`; equal rows fall on one side.
    """
    ordered = sorted(set(rows), key=lambda row: row_digest(row, seed))
    counts, texts = Counter(row.label for row in ordered), Counter(reading(row.text) for row in ordered)
    left = {label: -(-count // HELD_OUT) if count > 1 else 0 for label, count in counts.items()}
    kept: list[LabelledText] = []
    held: list[LabelledText] = []
    for row in ordered:
        if left[row.label] and texts[reading(row.text)] == 1:
            left[row.label] -= 1
            held.append(row)
        else:
            kept.append(row)
    return kept, held
