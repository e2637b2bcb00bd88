"""Look at a live version through its gateway, again and again, and take it back where it is critical."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from adapters.registry import Registry
from adapters.store import Store
from adapters.types import AUTO, AdapterVersion

from ..errors import Degraded, NothingToCompare
from ..metrics import TextMetric, score_text
from .live import Answer, Gateway
from .reference import FIRST, Questions, find_evidence, take_reference, without_reference
from .rollback import take_back
from .state import Look, StateFile, Watch
from .verdict import Expected, Measured, Plan, judge, seconds_until, set_level, worst

POLL_SECONDS = 60.0  # how soon a new live version is noticed between two looks

Emit = Callable[[dict[str, object]], None]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Settings:
    """What a monitor asks and what it holds the answers to. `reference` is ROUTE@N, an evidence file, `first`, or
    `None` for the live version's own evidence; `metric` counts with `first` alone.
    """

    route: str
    sets: Sequence[Questions]
    plan: Plan
    reference: str | None = None
    metric: TextMetric = "exact_match"
    max_tokens: int | None = None
    roll_back: bool = False


@dataclass(frozen=True, slots=True)
class Monitor:
    """One route under watch. Writes nothing but `states`, and the registry where it takes a version back."""

    registry: Registry
    store: Store
    gateway: Gateway
    states: StateFile
    settings: Settings
    emit: Emit
    progress: Progress

    def run(self, every: float | None) -> None:
        """Look every `every` seconds until the planned looks are done, once where it is `None`.

        Raises `Degraded` where a look is critical (after the rollback, where one is wanted), and `NothingToCompare`.
        """
        tried: dict[str, float] = {}
        told: str | None = None  # whose next look was announced
        while True:
            version = self._live()
            if version is None:
                self._pause(every)
                continue
            watch = self.states.read(version.engine_name)
            if watch.critical is None and len(watch.looks) >= self.settings.plan.looks:
                self._finish(version, every)
                return
            wait = self._wait(watch, tried.get(version.engine_name), every)
            if wait and watch.critical is None:
                if told != version.engine_name:
                    self.emit({"event": "waiting", "version": str(version.ref), "seconds": round(wait)})
                told = version.engine_name
                time.sleep(min(wait, POLL_SECONDS))
                continue
            tried[version.engine_name], told = time.time(), None
            look = watch.critical or self.look(version, watch, every)
            if look is not None and look.severity == "critical":
                self._end(version, look)
            if every is None:
                return

    def look(self, version: AdapterVersion, watch: Watch, every: float | None = None) -> Look | None:
        """Ask every set once and judge it; `None` where there was nothing to judge yet."""
        first = self.settings.reference == FIRST
        sets = self._expected(version, watch)
        measured = [
            self._measure(version, questions, expected)
            for questions, expected in zip(self.settings.sets, sets, strict=True)
        ]
        if first and watch.reference is None:
            self._record(version, watch, measured)
            return None
        missing = [_missing(*pair) for pair in zip(sets, measured, strict=True) if _is_thin(*pair)]
        if missing:
            if every is None:
                raise NothingToCompare(
                    f"{version.ref}: {'; '.join(missing)}", hint="see the gateway's log and `branchline route show`"
                )
            self.emit({"event": "incomplete", "version": str(version.ref), "why": "; ".join(missing)})
            return None
        number = len(watch.looks) + 1
        level = set_level(self.settings.plan, number, len(sets))
        pairs = zip(sets, measured, strict=True)
        findings = tuple(judge(expected, found, level, self.settings.plan) for expected, found in pairs)
        look = Look.of(number, time.time(), worst(findings), findings)
        self.states.write(version.engine_name, replace(watch, looks=(*watch.looks, look)))
        self._tell(version, look)
        return look

    def _live(self) -> AdapterVersion | None:
        state = self.registry.route(self.settings.route)
        return self.registry.version(state.name, state.live) if state.enabled and state.live is not None else None

    def _pause(self, every: float | None) -> None:
        if every is None:
            raise NothingToCompare(
                f"route {self.settings.route!r} is disabled or has no live version",
                hint="see `branchline route show`",
            )
        self.emit({"event": "paused", "route": self.settings.route, "why": "disabled, or no live version"})
        while self._live() is None:
            time.sleep(min(every, POLL_SECONDS))

    def _finish(self, version: AdapterVersion, every: float | None) -> None:
        """A schedule ends with its looks; whoever asks for one more must hear that nothing was looked at."""
        looks = self.settings.plan.looks
        if every is None:
            raise NothingToCompare(
                f"all {looks} planned looks at {version.ref} are done", hint="--restart begins anew, with a new α"
            )
        self.emit({"event": "finished", "version": str(version.ref), "looks": looks})

    def _wait(self, watch: Watch, tried: float | None, every: float | None) -> float:
        if every is None:
            return 0.0
        last = max((at for at in (watch.last_at, tried) if at is not None), default=None)
        return seconds_until(last, every, time.time())

    def _expected(self, version: AdapterVersion, watch: Watch) -> tuple[Expected, ...]:
        settings = self.settings
        if settings.reference == FIRST:
            sets = without_reference(settings.sets, settings.metric)
            if watch.reference is not None:
                sets = tuple(replace(one, scores=watch.reference[one.key]) for one in sets)
        else:
            evidence = find_evidence(self.registry, self.store, settings.reference, version)
            sets = take_reference(settings.sets, evidence, settings.reference or str(version.ref))
        return tuple(replace(one, max_tokens=settings.max_tokens or one.max_tokens) for one in sets)

    def _measure(self, version: AdapterVersion, questions: Questions, expected: Expected) -> Measured:
        asked = [row for row in questions.rows if not expected.scores or row.digest in expected.scores]

        def on_answer(done: int) -> None:
            self.progress(questions.name, done, len(asked))

        routed = questions.asked == "routed"
        model = AUTO if routed else self.settings.route
        answers = asyncio.run(self.gateway.ask(model, asked, expected.max_tokens, on_answer))
        count = {version.engine_name, *(self._bases(version) if routed else ())}
        return _measured(count, questions, expected.metric, [row.digest for row in asked], answers)

    def _bases(self, version: AdapterVersion) -> set[str]:
        """What engines call the base under the version."""
        told = {row.base_id for row in self.registry.gateways() if row.base_id is not None}
        return {version.manifest.base_id, *told}

    def _record(self, version: AdapterVersion, watch: Watch, measured: Sequence[Measured]) -> None:
        """Keep a first check as the reference; raises `NothingToCompare` where it is full of holes."""
        pairs = list(zip(self.settings.sets, measured, strict=True))
        thin = [questions.name for questions, found in pairs if 2 * len(found.scores) < len(questions.rows)]
        if thin:
            raise NothingToCompare(
                f"{version.ref} answered fewer than half of {', '.join(thin)}", hint="see the gateway's log"
            )
        reference = {questions.key: found.scores for questions, found in pairs}
        self.states.write(version.engine_name, replace(watch, reference=reference, reference_at=time.time()))
        items = {questions.name: len(found.scores) for questions, found in pairs}
        self.emit({"event": "reference", "version": str(version.ref), "items": items})

    def _tell(self, version: AdapterVersion, look: Look) -> None:
        self.emit(
            {
                "event": "look",
                "version": str(version.ref),
                "engine_name": version.engine_name,
                "look": look.number,
                "looks": self.settings.plan.looks,
                "severity": look.severity,
                "sets": list(look.findings),
            }
        )

    def _end(self, version: AdapterVersion, look: Look) -> None:
        why = f"monitor, look {look.number} of {self.settings.plan.looks} at {version.ref}: {look.said}"
        if self.settings.roll_back:
            self.emit(take_back(self.registry, version, why))
        raise Degraded(why, hint=self._what_now(version))

    def _what_now(self, version: AdapterVersion) -> str:
        if self.settings.roll_back:
            return "see `branchline route history`"
        return f"`branchline route rollback {version.route}`, or --restart to begin the looks anew"


def _measured(
    count: Collection[str], questions: Questions, metric: TextMetric, rows: Sequence[str], answers: Sequence[Answer]
) -> Measured:
    """`count` are the names whose answers do."""
    wanted = questions.answers
    pairs = list(zip(rows, answers, strict=True))
    mine = [(row, one) for row, one in pairs if one.error is None and one.model in count]
    return Measured(
        scores={row: score_text(metric, one.text, wanted[row]) for row, one in mine},
        others=dict(Counter(one.model for _, one in pairs if one.error is None and one.model not in count)),
        errors=dict(Counter(one.error for _, one in pairs if one.error is not None)),
    )


def _is_thin(expected: Expected, measured: Measured) -> bool:
    """Fewer than half of the items answered: a look would spend its α on next to nothing."""
    return 2 * len(measured.scores.keys() & expected.scores.keys()) < max(1, len(expected.scores))


def _missing(expected: Expected, measured: Measured) -> str:
    counted = {**measured.errors, **{f"answered by {name}": count for name, count in measured.others.items()}}
    listed = ", ".join(f"{count} × {reason}" for reason, count in sorted(counted.items())) or "no more"
    return f"{expected.name}: {len(measured.scores)} of {len(expected.scores)} items answered by it ({listed})"
