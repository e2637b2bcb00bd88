"""The output folder of a sequence: where everything lies, and what is done. No torch here.

OUT/stages/<identity>/    a trained stage, as a run's folder; arms that agree so far share it
OUT/scores/*.json.gz      item-level scores: row, exact, nll
OUT/arms/<arm>/seed-<n>/stage-<i>.json   one row of R, written last: where it is, the stage is done
OUT/arms/<arm>/seed-<n>/failed.json      why an arm could not go on
OUT/base.json             row 0
OUT/sequence.json, OUT/sequence.html     the report
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class SequenceFolder:
    """Paths below `out`."""

    out: Path

    @property
    def stages(self) -> Path:
        return self.out / "stages"

    @property
    def scores(self) -> Path:
        return self.out / "scores"

    @property
    def base(self) -> Path:
        return self.out / "base.json"

    @property
    def report(self) -> Path:
        return self.out / "sequence.json"

    @property
    def page(self) -> Path:
        return self.out / "sequence.html"

    def row(self, arm: str, seed: int, stage: int) -> Path:
        return self._arm(arm, seed) / f"stage-{stage}.json"

    def failure(self, arm: str, seed: int) -> Path:
        return self._arm(arm, seed) / "failed.json"

    def _arm(self, arm: str, seed: int) -> Path:
        return self.out / "arms" / arm / f"seed-{seed}"
