"""Evidence about a classifier: what it decided on labelled rows that its weights never saw, item by item.

The promotion gate recomputes everything from the items. No text is kept, only each text's digest.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from .errors import BadInput, shown
from .evidence import MAX_EVIDENCE_BYTES
from .rows import canonical_json

SCHEMA = 1
NEGATIVE_LABELS = frozenset({"base", "oos"})
Source = Literal["file", "held_out"]


@dataclass(frozen=True, slots=True)
class DecidedItem:
    """One row: the digest of its text, its label, the route decided on (`None` = base) and the decision's score.

    `seen` is true where the classifier was fitted on this very row: such items speak for nobody but the live one,
    which they flatter.
    """

    row: str
    label: str
    route: str | None
    score: float
    seen: bool = False

    @property
    def is_negative(self) -> bool:
        return self.label in NEGATIVE_LABELS

    @property
    def is_right(self) -> bool:
        return self.route is None if self.is_negative else self.route == self.label


@dataclass(frozen=True, slots=True)
class ClassifierEvidence:
    """One classifier on the rows of a file, or on its own rows, each decided by a fit that left it out (`held_out`).

    `rows_digest` is the file's sha256, or that of the rows fitted on. `name` is what people call the rows.
    """

    classifier_digest: str
    source: Source
    name: str
    rows_digest: str
    items: tuple[DecidedItem, ...]
    schema: int = SCHEMA

    @property
    def by_key(self) -> dict[tuple[str, str], DecidedItem]:
        """Items by row and label."""
        return {(item.row, item.label): item for item in self.items}

    @property
    def seen(self) -> int:
        """How many items the classifier was fitted on."""
        return sum(item.seen for item in self.items)

    def to_json(self) -> str:
        """Canonical JSON; `parse_classifier_evidence` is its inverse."""
        return canonical_json(asdict(self))

    @property
    def digest(self) -> str:
        """sha256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


def parse_classifier_evidence(text: str | bytes) -> ClassifierEvidence:
    """Read and validate evidence; raises `BadInput` naming what is wrong."""
    if len(text) > MAX_EVIDENCE_BYTES:
        raise BadInput(f"evidence is over {MAX_EVIDENCE_BYTES} bytes", hint="evaluate on fewer rows")
    try:
        evidence = _evidence(json.loads(text))
        evidence.to_json().encode()
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"classifier evidence is malformed: {error!s:.200}", hint="evaluate again") from error
    return evidence


def _evidence(value: Mapping[str, object]) -> ClassifierEvidence:
    if value["schema"] != SCHEMA:
        raise ValueError(f"schema is {shown(value['schema'])}, this version reads {SCHEMA}")
    source = value["source"]
    if source != "file" and source != "held_out":
        raise ValueError(f"source is {shown(source)}, expected file or held_out")
    items = value["items"]
    if not isinstance(items, list):
        raise ValueError(f"items are {shown(items)}, expected a list")
    texts = [_text(value, key) for key in ("classifier_digest", "name", "rows_digest")]
    evidence = ClassifierEvidence(texts[0], source, texts[1], texts[2], tuple(map(_item, items)))
    if len(evidence.by_key) != len(items):
        raise ValueError("an item stands there twice")
    return evidence


def _item(value: Mapping[str, object]) -> DecidedItem:
    route, score, seen = value["route"], value["score"], value["seen"]
    if not (route is None or isinstance(route, str)) or not isinstance(seen, bool):
        raise ValueError(f"an item's route is {shown(route)}, its seen {shown(seen)}")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"an item's score is {shown(score)}, expected a finite number")
    return DecidedItem(_text(value, "row"), _text(value, "label"), route, float(score), seen)


def _text(value: Mapping[str, object], key: str) -> str:
    found = value[key]
    if not isinstance(found, str) or not found:
        raise ValueError(f"{key} is {shown(found)}, expected text")
    return found


def distinct_items(items: Sequence[DecidedItem]) -> tuple[DecidedItem, ...]:
    """`items` without repeats of the same row and label, in their order."""
    return tuple({(item.row, item.label): item for item in items}.values())
