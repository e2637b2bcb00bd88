"""Evidence: what an evaluation found about one version, item by item.

The trainer writes it, the promotion gate recomputes everything it needs from the items. It is bound to
the weights, the base and each evaluation file by digest, and digested apart from the version.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Literal, TypeGuard

from .errors import BadInput, shown
from .rows import canonical_json
from .types import Json

SCHEMA = 1
MAX_EVIDENCE_BYTES = 64 * 1024 * 1024
Metric = Literal["exact_match", "json_equal", "contains", "choice", "token_f1", "perplexity"]
METRICS: tuple[Metric, ...] = ("exact_match", "json_equal", "contains", "choice", "token_f1", "perplexity")
RoutedTo = Literal["adapter", "base"]


@dataclass(frozen=True, slots=True)
class Score:
    """One model on one item: `score` in [0, 1]; `nll` = mean nats per target token, over `tokens` of them."""

    score: float
    nll: float
    tokens: int


@dataclass(frozen=True, slots=True)
class Item:
    """One evaluated row. `routed_to` says where the classifier would send it, `None` where it was not asked."""

    row: str
    base: Score
    adapter: Score
    routed_to: RoutedTo | None = None

    @property
    def routed(self) -> Score:
        """The score of what would really answer; raises `ValueError` without a decision."""
        if self.routed_to is None:
            raise ValueError("this item carries no routing decision")
        return self.adapter if self.routed_to == "adapter" else self.base


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Base and adapter on the same items of one file. `part` names the half that was used, where a file was split."""

    name: str
    file_digest: str
    metric: Metric
    items: tuple[Item, ...]
    part: str | None = None

    @property
    def is_routed(self) -> bool:
        """True where every item carries a routing decision."""
        return all(item.routed_to is not None for item in self.items)


@dataclass(frozen=True, slots=True)
class Evidence:
    """The report on one version.

    `selection` records how the checkpoint was chosen; `guardrail_failed` is true where no checkpoint kept every
    guardrail. `classifier_digest` names the classifier whose decisions stand in `routed_to`. `probe` may hold the
    trainer's own log-probabilities of generated tokens, for the proof of application.
    """

    weights_digest: str
    base_fingerprint: str
    created: str
    target: Evaluation
    guardrails: tuple[Evaluation, ...]
    classifier_digest: str | None = None
    guardrail_failed: bool = False
    selection: Json = field(default_factory=dict)
    probe: Json = field(default_factory=dict)
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Canonical JSON; `parse_evidence` is its inverse."""
        return canonical_json(asdict(self))

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def parse_evidence(text: str | bytes) -> Evidence:
    """Read and validate evidence; raises `BadInput` that lists every problem."""
    if len(text) > MAX_EVIDENCE_BYTES:
        raise BadInput(f"evidence is over {MAX_EVIDENCE_BYTES} bytes", hint="evaluate on fewer items")
    try:
        value = json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"evidence is not JSON: {error}", hint="give the evidence.json the trainer wrote") from error
    reader = _Reader()
    evidence = reader.evidence(value)
    if reader.problems or evidence is None:
        shown = reader.problems[:20]
        more = len(reader.problems) - len(shown)
        raise BadInput(
            f"evidence is malformed: {'; '.join(shown)}{f'; and {more} more' if more else ''}",
            hint="give the evidence.json the trainer wrote, unedited",
        )
    try:
        evidence.to_json().encode()
    except (ValueError, RecursionError) as error:  # infinite numbers, half surrogate pairs, endless nests
        raise BadInput(
            f"evidence has no canonical form: {error}", hint="give the evidence.json the trainer wrote, unedited"
        ) from error
    return evidence


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number JSON knows")


class _Reader:
    """Turns untrusted JSON into `Evidence`, collecting problems instead of stopping at the first."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def evidence(self, value: object) -> Evidence | None:
        row = self._mapping(value, "evidence")
        if row.get("schema") != SCHEMA:
            self.problems.append(f"schema is {shown(row.get('schema'))}, this version reads {SCHEMA}")
            return None
        guardrails = self._sequence(row.get("guardrails"), "guardrails")
        classifier = row.get("classifier_digest")
        return Evidence(
            weights_digest=self._digest(row, "weights_digest"),
            base_fingerprint=self._digest(row, "base_fingerprint"),
            created=self._text(row, "created", "evidence"),
            target=self._evaluation(row.get("target"), "target"),
            guardrails=tuple(self._evaluation(one, f"guardrails[{i}]") for i, one in enumerate(guardrails)),
            classifier_digest=None if classifier is None else self._digest(row, "classifier_digest"),
            guardrail_failed=row.get("guardrail_failed") is True,
            selection=self._mapping(row.get("selection", {}), "selection"),
            probe=self._mapping(row.get("probe", {}), "probe"),
        )

    def _evaluation(self, value: object, where: str) -> Evaluation:
        row = self._mapping(value, where)
        metric = next((known for known in METRICS if known == row.get("metric")), None)
        if metric is None:
            self.problems.append(f"{where}.metric is {shown(row.get('metric'))}, expected one of {', '.join(METRICS)}")
        part = row.get("part")
        items = tuple(
            self._item(one, f"{where}.items[{i}]")
            for i, one in enumerate(self._sequence(row.get("items"), f"{where}.items"))
        )
        if len({item.row for item in items}) != len(items):
            self.problems.append(f"{where}.items names a row twice")
        return Evaluation(
            name=self._text(row, "name", where),
            file_digest=self._digest(row, "file_digest", where),
            metric=metric or "exact_match",
            items=items,
            part=part if isinstance(part, str) else None,
        )

    def _item(self, value: object, where: str) -> Item:
        row = self._mapping(value, where)
        routed = row.get("routed_to")
        routed_to: RoutedTo | None = None
        if routed == "adapter" or routed == "base":
            routed_to = routed
        elif routed is not None:
            self.problems.append(f"{where}.routed_to is {shown(routed)}, expected adapter, base or null")
        return Item(
            row=self._text(row, "row", where),
            base=self._score(row.get("base"), f"{where}.base"),
            adapter=self._score(row.get("adapter"), f"{where}.adapter"),
            routed_to=routed_to,
        )

    def _score(self, value: object, where: str) -> Score:
        row = self._mapping(value, where)
        score, nll, tokens = row.get("score"), row.get("nll"), row.get("tokens")
        if not _is_number(score) or not 0 <= score <= 1:
            self.problems.append(f"{where}.score is {shown(score)}, expected a number from 0 to 1")
            score = 0.0
        if not _is_number(nll) or nll < 0:
            self.problems.append(f"{where}.nll is {shown(nll)}, expected nats per token, 0 or more")
            nll = 0.0
        if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:
            self.problems.append(f"{where}.tokens is {shown(tokens)}, expected 1 or more")
            tokens = 1
        return Score(float(score), float(nll), tokens)

    def _mapping(self, value: object, where: str) -> Mapping[str, object]:
        if isinstance(value, dict):
            return value
        self.problems.append(f"{where} is {type(value).__name__}, expected an object")
        return {}

    def _sequence(self, value: object, where: str) -> Sequence[object]:
        if isinstance(value, list):
            return value
        self.problems.append(f"{where} is {type(value).__name__}, expected a list")
        return []

    def _text(self, row: Mapping[str, object], key: str, where: str) -> str:
        value = row.get(key)
        if isinstance(value, str) and value:
            return value
        self.problems.append(f"{where}.{key} is {shown(value)}, expected text")
        return ""

    def _digest(self, row: Mapping[str, object], key: str, where: str = "evidence") -> str:
        value = self._text(row, key, where)
        if value and (len(value) != 64 or not set(value) <= set("0123456789abcdef")):
            self.problems.append(f"{where}.{key} is not a sha256 in hex")
        return value


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
