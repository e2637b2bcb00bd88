"""Did it take effect? Waits until every gateway that is alive reports a change as in force."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .journal import Journal
from .types import GatewayRow

HEARTBEAT_SECONDS = 1.0
ALIVE_SECONDS = 5.0
SILENT_SECONDS = 3600.0  # after that a gateway that was killed, and could not take its row away, is not named any more
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Convergence:
    """Which gateways follow a change. `problems` maps a gateway that does not to the reason, `silent` one that said
    nothing for a while to the seconds: it is gone, or cut off from the registry and serves what was in force there.
    """

    in_force: tuple[str, ...]
    problems: dict[str, str]
    waited_ms: float
    silent: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        total = len(self.in_force) + len(self.problems)
        reached = f"in force on {len(self.in_force)} of {total} gateways after {self.waited_ms:.0f} ms"
        text = reached if total else "no gateway is running; it takes effect when one starts"
        silent = (
            f"{gateway}: silent for {seconds:.0f} s; if it is only cut off, it serves as before"
            for gateway, seconds in sorted(self.silent.items())
        )
        return "; ".join([text, *(f"{name}: {problem}" for name, problem in sorted(self.problems.items())), *silent])


def silent_seconds(row: GatewayRow) -> float:
    """Since the gateway's last heartbeat."""
    return time.time() - row.last_seen


def is_alive(row: GatewayRow) -> bool:
    """Whether its last heartbeat is less than `ALIVE_SECONDS` ago."""
    return silent_seconds(row) < ALIVE_SECONDS


def wait_in_force(
    journal: Journal, serial: int, *, route: str | None = None, started: float, timeout_seconds: float = 2.0
) -> Convergence:
    """Poll the heartbeats until all gateways alive have applied event `serial`, or the time is over.

    `started` is `time.monotonic()` from where the wait is counted. A gateway counts as alive for
    `ALIVE_SECONDS` after its last heartbeat, and is named as silent for `SILENT_SECONDS`.
    """
    return _wait(journal, lambda row: _problem(row, route, serial), started, timeout_seconds)


def wait_exemplars(
    journal: Journal, serial: int, digest: str | None, *, started: float, timeout_seconds: float = 2.0
) -> Convergence:
    """As `wait_in_force`, until all gateways alive decide with the exemplars that have this digest."""

    def problem(row: GatewayRow) -> str | None:
        late = _problem(row, None, serial)
        return late or (None if row.exemplars_digest == digest else "still decides with other exemplars")

    return _wait(journal, problem, started, timeout_seconds)


def _wait(
    journal: Journal, find_problem: Callable[[GatewayRow], str | None], started: float, timeout_seconds: float
) -> Convergence:
    deadline = time.monotonic() + timeout_seconds
    while True:
        rows = journal.gateways()
        alive = [row for row in rows if is_alive(row)]
        problems = {row.gateway_id: problem for row in alive if (problem := find_problem(row))}
        if not problems or time.monotonic() > deadline:
            waited_ms = (time.monotonic() - started) * 1000
            done = tuple(row.gateway_id for row in alive if row.gateway_id not in problems)
            return Convergence(done, problems, waited_ms, _silent([row for row in rows if row not in alive]))
        time.sleep(_POLL_SECONDS)


def _silent(rows: Sequence[GatewayRow]) -> dict[str, float]:
    """Those of `rows` that are still named, and since when nothing was heard of them."""
    return {row.gateway_id: seconds for row in rows if (seconds := silent_seconds(row)) < SILENT_SECONDS}


def _problem(row: GatewayRow, route: str | None, serial: int) -> str | None:
    """Why a gateway does not follow yet, `None` where it does."""
    known = row.routes.get(route) if route is not None else None
    applied = row.serial if known is None else known.serial
    if applied < serial:
        return f"still at serial {applied}, wanted {serial}" + (
            f" ({known.problem})" if known and known.problem else ""
        )
    return known.problem if known else None
