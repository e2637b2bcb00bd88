"""What a live version is held to: the items of an evidence, bound to the very files that are asked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from adapters.command import find_version, read_bytes
from adapters.evidence import Evaluation, Evidence, parse_evidence
from adapters.promotion import evidence_of
from adapters.registry import Registry
from adapters.rows import Example, read_examples, sha256_file
from adapters.store import Store
from adapters.types import AdapterVersion

from ..errors import NothingToCompare
from ..metrics import TextMetric, answer_limit, scores_text
from .verdict import Expected, Kind

FIRST = "first"
_FIRST_HINT = f"attach fresh evidence, or use --reference {FIRST}: the first check is then the reference"


Asked = Literal["forced", "routed"]


@dataclass(frozen=True, slots=True)
class Questions:
    """One row file as questions, each prompt once: asked of the route itself, or of whatever `auto` makes of them."""

    name: str
    kind: Kind
    file_digest: str
    rows: tuple[Example, ...]
    asked: Asked = "forced"

    @property
    def key(self) -> str:
        """What tells one set of a monitor from another."""
        return self.file_digest if self.asked == "forced" else f"{self.file_digest}:{self.asked}"

    @property
    def answers(self) -> dict[str, str]:
        """The answers wanted, by row digest."""
        return {row.digest: row.answer for row in self.rows}


def read_questions(path: Path, kind: Kind) -> Questions:
    first: dict[str, Example] = {}
    for row in read_examples(path):
        first.setdefault(row.digest, row)
    return Questions(path.stem, kind, sha256_file(path), tuple(first.values()))


def as_routed(questions: Questions) -> Questions:
    """The same rows, asked of `auto`."""
    return replace(questions, name=f"{questions.name} (routed)", asked="routed")


def find_evidence(registry: Registry, store: Store, wanted: str | None, live: AdapterVersion) -> list[Evidence]:
    """Evidence to take scores from, newest first: of `wanted` (ROUTE@N or a file), by default the live version's own.

    Evidence about other weights than the version's is left out.
    """
    if wanted is not None and Path(wanted).is_file():
        return [parse_evidence(read_bytes(Path(wanted)))]
    version = live if wanted is None else find_version(registry, wanted)
    found = evidence_of(registry, store, registry.route(version.route), version.number)
    return [one for one in reversed(found) if one.weights_digest == version.digest]


def take_reference(sets: Sequence[Questions], evidence: Sequence[Evidence], whose: str) -> tuple[Expected, ...]:
    """The scores on each set of what answered it, from the newest evidence that has that very file; raises
    `NothingToCompare` naming every set without one.

    An answer may take as many tokens as `evaluate` gives it by default: twice the longest wanted, and at least 16.
    """
    problems: list[str] = []
    expected: list[Expected] = []
    for questions in sets:
        found = _evaluation(questions, evidence)
        if found is None:
            decided = "" if questions.asked == "forced" else " that says where the classifier sends them"
            problems.append(f"{whose} has no evidence on these very rows of {questions.name}{decided}")
        elif not scores_text(found.metric):
            problems.append(f"{questions.name} was scored by {found.metric}, which a gateway's text does not show")
        else:
            answers = {item.row: item.adapter if questions.asked == "forced" else item.routed for item in found.items}
            limit = answer_limit(max(item.adapter.tokens for item in found.items))
            scores = {row: answer.score for row, answer in answers.items()}
            expected.append(Expected(questions.name, questions.kind, questions.key, found.metric, scores, limit))
    if problems:
        raise NothingToCompare("; ".join(problems), hint=_FIRST_HINT)
    return tuple(expected)


def without_reference(sets: Sequence[Questions], metric: TextMetric) -> tuple[Expected, ...]:
    """Sets whose first check is still to come: nothing to compare with yet."""
    return tuple(Expected(one.name, one.kind, one.key, metric, {}) for one in sets)


def _evaluation(questions: Questions, evidence: Sequence[Evidence]) -> Evaluation | None:
    every = (one for report in evidence for one in (report.target, *report.guardrails))
    mine = (one for one in every if one.file_digest == questions.file_digest and one.items)
    return next((one for one in mine if questions.asked == "forced" or one.is_routed), None)
