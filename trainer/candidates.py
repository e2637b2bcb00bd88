"""Checkpoints that may become the version: kept on disk, scored on the selection items, one of them chosen."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from adapters.evidence import Evidence, parse_evidence
from adapters.manifests import weights_digest

from .comparison import Comparison
from .folder import RunFolder, write_text
from .model import load_weights, save_adapter
from .select import Candidate
from .task import Judges

_SCORES = "selection.json"


@dataclass(frozen=True, slots=True)
class Candidates:
    """The candidates of one run, by their step. Scores are kept as evidence, whose format they share."""

    folder: RunFolder
    model: Any
    base_id: str
    comparison: Comparison
    judges: Judges

    def keep(self, step: int) -> None:
        """Save the adapter that the model carries as the candidate of `step`."""
        save_adapter(self.model, self.folder.candidate(step), self.base_id)

    def score(self, step: int) -> Candidate:
        """Score a candidate, or read what an earlier call found. Leaves its weights in the model if it scored."""
        folder = self.folder.candidate(step)
        scores = folder / _SCORES
        if not scores.is_file():
            load_weights(self.model, folder)
            write_text(scores, self._evidence(step).to_json())
        found = parse_evidence(scores.read_text(encoding="utf-8"))
        return Candidate(step, found.target, found.guardrails)

    def score_all(self, steps: Iterable[int]) -> list[Candidate]:
        return [self.score(step) for step in steps]

    def _evidence(self, step: int) -> Evidence:
        return Evidence(
            weights_digest=weights_digest(self.folder.candidate(step)),
            base_fingerprint=self.comparison.base_fingerprint,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            target=self.comparison.compare(self.judges.target).evaluation,
            guardrails=tuple(self.comparison.compare(one).evaluation for one in self.judges.guardrails),
        )
