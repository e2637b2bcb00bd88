"""What is in force, in a worker: a copy of the parent's, never ahead of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

from adapters.exemplars import Exemplar, Exemplars

from ..background import Background
from ..classify.judge import Judge
from ..following.judge_building import JudgeBuilder
from ..following.judging import Judging
from ..following.opening import open_classifier, open_own_encoder
from ..keys.principal import KeyRing
from ..policy import Snapshot
from ..settings import Settings
from ..types import Call, EngineStatus, Reply
from .channel import ANSWER_SECONDS, Channel, Document
from .messages import Facts, JudgedWith, Told
from .shapes import shape


class Followed:
    """Keeps the contract of `Standing`. Loads are the parent's: they are asked for over the channel.

    The classifier is read and memory is built here, from what the parent tells; `judged` is called after each change.
    """

    def __init__(self, settings: Settings, base_id: str, channel: Channel, judged: Callable[[], None]) -> None:
        self._channel = channel
        self._background = Background()
        self._exemplars = Exemplars(None, ())
        builder = JudgeBuilder(
            lambda: self._exemplars, settings.home.open_store(), open_classifier, partial(open_own_encoder, settings)
        )
        self._judging = Judging(builder, self._background, judged)
        self._facts = Facts()
        self.keys = KeyRing()
        self.snapshot = Snapshot(0, base_id, {})

    @property
    def judge(self) -> Judge:
        return self._judging.judge

    @property
    def judged_with(self) -> JudgedWith:
        return JudgedWith(self._judging.classifier_digest, self._judging.exemplars_digest, self._judging.problem)

    @property
    def stale_seconds(self) -> float:
        return self._facts.stale_seconds

    @property
    def problems(self) -> Mapping[str, str]:
        return self._facts.problems or {}

    @property
    def warming(self) -> Sequence[str]:
        return self._facts.warming

    @property
    def classifier_problem(self) -> str | None:
        return self._facts.classifier_problem

    @property
    def engines(self) -> Sequence[EngineStatus]:
        return self._facts.engines

    @property
    def facts(self) -> Facts:
        """As the parent told them last."""
        return self._facts

    async def ensure_resident(self, route: str, number: int, *, timeout_seconds: float) -> None:
        body = {"route": route, "number": number, "timeout_seconds": timeout_seconds}
        await self._channel.ask("ensure_resident", body, seconds=timeout_seconds + ANSWER_SECONDS)

    async def until_warm(self, route: str, *, timeout_seconds: float) -> None:
        body = {"route": route, "timeout_seconds": timeout_seconds}
        await self._channel.ask("until_warm", body, seconds=timeout_seconds + ANSWER_SECONDS)

    async def look(self) -> None:
        """Have the facts as they are now. Raises `EngineUnavailable` where the parent is gone."""
        self.learn(await self._channel.ask("facts", {}))

    def learn(self, facts: Document) -> None:
        self._facts = shape(Facts).validate_python(facts)

    def take(self, told: Told) -> None:
        """Put a snapshot in force."""
        before = {} if told.whole else self.snapshot.routes
        snapshot = told.snapshot
        self.snapshot = Snapshot(
            snapshot.serial,
            snapshot.base_id,
            {**before, **snapshot.routes},
            snapshot.classifier_digest,
            snapshot.exemplars_digest,
        )
        if told.whole or told.keys:
            self.keys = (KeyRing() if told.whole else self.keys).updated(told.keys)

    def judge_with(self, classifier: str | None, exemplars: Document | None) -> None:
        """Follow what is wanted; `exemplars` only where they changed."""
        if exemplars is not None:
            rows = tuple(Exemplar(*row) for row in exemplars["rows"])
            self._exemplars = Exemplars(exemplars["digest"], rows)
        self._judging.want(classifier, changed=exemplars is not None)

    async def settled(self, timeout_seconds: float) -> None:
        """Wait until what is being read and built has come to an end, well or not, or the time is over."""
        await self._background.settled(timeout_seconds)

    async def stop(self) -> None:
        await self._background.stop()
        await self._judging.stop()


class Opens(Protocol):
    """Where a worker's calls go: to the parent, or to engines that it follows."""

    async def open(self, call: Call) -> Reply:
        """As `Serving.open`."""


class RemoteEngine:
    """The gateway's engine, as far as a worker needs it: keeps the contract of `Serving`."""

    def __init__(self, followed: Followed, channel: Channel, calls: Opens) -> None:
        self._followed = followed
        self._channel = channel
        self._calls = calls

    @property
    def base_id(self) -> str:
        return self._followed.snapshot.base_id

    @property
    def engines(self) -> Sequence[EngineStatus]:
        return self._followed.engines

    async def ready(self) -> bool:
        return self._followed.facts.ready

    async def drain(self, name: str) -> None:
        self._followed.learn(await self._channel.ask("drain", {"name": name}))

    async def resume(self, name: str) -> None:
        self._followed.learn(await self._channel.ask("resume", {"name": name}))

    async def open(self, call: Call) -> Reply:
        return await self._calls.open(call)
