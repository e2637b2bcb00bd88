"""What a monitor remembers across restarts: the looks it has taken at each version, and so the α it has spent.

HOME/monitor/ROUTE-PLAN.json, one file per plan (sets, reference, α, looks, thresholds): another plan is another test.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import CheckpointInvalid, FolderOccupied
from ..folder import hold, write_text
from .verdict import Finding, Severity

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a version: its number from 1, seconds since the epoch, what was found."""

    number: int
    at: float
    severity: Severity | None
    findings: tuple[Mapping[str, Any], ...]
    said: str

    @classmethod
    def of(cls, number: int, at: float, severity: Severity | None, findings: tuple[Finding, ...]) -> Look:
        alerts = [str(one) for one in findings if one.severity] or [str(one) for one in findings]
        return cls(number, at, severity, tuple(asdict(one) for one in findings), "; ".join(alerts))


@dataclass(frozen=True, slots=True)
class Watch:
    """The looks at one version. `reference` holds the scores of its first check by file and row, where that is what
    it is held to.
    """

    looks: tuple[Look, ...] = ()
    reference: Mapping[str, Mapping[str, float]] | None = None
    reference_at: float | None = None

    @property
    def last_at(self) -> float | None:
        """When it was last asked, in seconds since the epoch."""
        return self.looks[-1].at if self.looks else self.reference_at

    @property
    def critical(self) -> Look | None:
        """The look that ended the watch, if one did: a test that has rejected is over."""
        return self.looks[-1] if self.looks and self.looks[-1].severity == "critical" else None


@dataclass(frozen=True, slots=True)
class StateFile:
    """Where the watches of one plan are kept, by engine name."""

    path: Path
    route: str
    plan: Mapping[str, object] = field(default_factory=dict)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the file for this process: two monitors of one plan would spend α twice."""
        occupied = FolderOccupied(
            f"another process monitors {self.route} with this plan", hint="stop it, or change the plan"
        )
        with hold(self.path.with_suffix(".lock"), occupied):
            yield

    def read(self, engine_name: str) -> Watch:
        """The watch of a version; an empty one where it was never looked at."""
        found = self._watches().get(engine_name)
        try:
            return Watch() if found is None else _watch(found)
        except (TypeError, KeyError) as error:
            raise self._broken() from error

    def write(self, engine_name: str, watch: Watch) -> None:
        watches = {**self._watches(), engine_name: asdict(watch)}
        document = {"schema": SCHEMA, "route": self.route, "plan": self.plan, "watches": watches}
        write_text(self.path, json.dumps(document, allow_nan=False) + "\n")

    def _watches(self) -> dict[str, Any]:
        if not self.path.exists():
            return {}
        try:
            document = json.loads(self.path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise self._broken() from error
        watches = document.get("watches") if isinstance(document, dict) and document.get("schema") == SCHEMA else None
        if not isinstance(watches, dict):
            raise self._broken()
        return watches

    def _broken(self) -> CheckpointInvalid:
        return CheckpointInvalid(
            f"monitor/{self.path.name} in the home is not what a monitor wrote", hint="remove it to begin anew"
        )


def _watch(row: Mapping[str, Any]) -> Watch:
    looks = tuple(Look(**{**look, "findings": tuple(look["findings"])}) for look in row["looks"])
    return Watch(looks, row["reference"], row["reference_at"])
