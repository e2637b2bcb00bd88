"""Routing decisions made beforehand by `branchline classifier decide`, so that the trainer needs no classifier."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapters.evidence import RoutedTo
from adapters.rows import sha256_file

from .errors import DecisionsInvalid

_HINT = "write the file with `branchline classifier decide FILE --out DECISIONS.jsonl`"


@dataclass(frozen=True, slots=True)
class Decisions:
    """Where one classifier sends each row: `routes[prompt digest]` is a route, or `None` for the base."""

    classifier_digest: str
    routes: Mapping[str, str | None]
    file_digest: str

    def routed_to(self, row: str, name: str) -> RoutedTo:
        """What would answer `row` if the adapter were route `name`."""
        return "adapter" if self.routes[row] == name else "base"

    def require(self, rows: Sequence[str], where: str) -> None:
        """Raise `DecisionsInvalid` where a row has no decision."""
        missing = sum(row not in self.routes for row in rows)
        if missing:
            raise DecisionsInvalid(f"{missing} of {len(rows)} rows of {where} have no routing decision", hint=_HINT)


def read_decisions(path: Path) -> Decisions:
    """Rows `{"row", "route", "score", "classifier"}`; raises `DecisionsInvalid` for anything else."""
    routes: dict[str, str | None] = {}
    classifiers: set[str] = set()
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DecisionsInvalid(f"cannot read {path.name}: {error}", hint=_HINT) from error
    for number, line in enumerate(lines, start=1):
        row, route, classifier = _decision(line, f"{path.name} line {number}")
        if routes.setdefault(row, route) != route:
            raise DecisionsInvalid(f"{path.name} line {number} contradicts an earlier line", hint=_HINT)
        classifiers.add(classifier)
    if len(classifiers) != 1:
        raise DecisionsInvalid(
            f"{path.name} holds decisions of {len(classifiers)} classifiers, expected exactly 1", hint=_HINT
        )
    return Decisions(classifiers.pop(), routes, sha256_file(path))


def _decision(line: str, where: str) -> tuple[str, str | None, str]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DecisionsInvalid(f"{where} is not JSON", hint=_HINT) from error
    if isinstance(value, dict):
        row, route, classifier = value.get("row"), value.get("route"), value.get("classifier")
        if isinstance(row, str) and isinstance(classifier, str) and (route is None or isinstance(route, str)):
            return row, route, classifier
    raise DecisionsInvalid(f"{where} is no decision: expected row, route and classifier", hint=_HINT)
