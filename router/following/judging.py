"""Keeps the judge in force: the wanted classifier and the exemplars as they stand, swapped in together.

A new judge is built beside the traffic; the old one stays in force until then, and where it cannot be built. What is
no exemplar any more leaves the judge in force at once, whatever is being built; while another classifier is being
brought in, which an encoder may make long, a few new exemplars come into the judge in force, too.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from functools import partial
from typing import Protocol

from adapters.exemplars import exemplars_changed
from adapters.view import View

from ..background import Background
from ..classify.encoder.batching import BatchedEncoder
from ..classify.encoding import Encoder
from ..classify.judge import Judge
from ..classify.memory import Memory
from ..daemon_thread import in_daemon_thread
from .judge_building import BuildStopped, JudgeBuilder, Parts, reason_of

RETRY_SECONDS = 10.0
ENCODER_GRACE_SECONDS = 60.0  # for requests that began with an encoder since replaced
MAX_BUILDS = 2  # the wanted one, and one that was overtaken and does not end
MAX_CATCHING_UP = 3  # of one build: whoever changes exemplars all the time must not keep it out
MOST_NEW = 64  # texts that come in beside a build; more wait for it
log = logging.getLogger("branchline.judging")


class JudgeKeeper(Protocol):
    """Follows which classifier and which exemplars are wanted; the digests say which of both are in force."""

    @property
    def judge(self) -> Judge:
        """What decides in this process."""

    @property
    def classifier_digest(self) -> str | None: ...

    @property
    def exemplars_digest(self) -> str | None: ...

    @property
    def coming(self) -> list[str]:
        """What is wanted and on its way, but not in force yet."""

    @property
    def problem(self) -> str | None:
        """Why what is in force is not what is wanted."""

    def follow(self, view: View) -> None:
        """Learn what is wanted now."""

    async def stop(self) -> None:
        """End what follows."""


class Judging:
    """Lives on the gateway's event loop. `judge` may be read at any time; `swapped` is called after each change.

    `problem` says why what is in force is not what is wanted.
    """

    def __init__(self, builder: JudgeBuilder, background: Background, swapped: Callable[[], None]) -> None:
        self._builder = builder
        self._background = background
        self._swapped = swapped
        self._wanted: str | None = None
        self._changes = 0
        self._followed = 0  # of those changes, how many are in force
        self._caught_up = 0  # and after how many nothing in force is no exemplar any more
        self._following: asyncio.Task[None] | None = None
        self._catching_up: asyncio.Task[None] | None = None
        self._stopped = threading.Event()
        self._builds = asyncio.Semaphore(MAX_BUILDS)
        self._batched: BatchedEncoder | None = None
        self._replaced: list[BatchedEncoder] = []
        self._parts = Parts(None, Memory.build(()))
        self.judge = Judge(None, self._parts.memory)
        self.problem: str | None = None

    @property
    def classifier_digest(self) -> str | None:
        return self.judge.classifier_digest

    @property
    def exemplars_digest(self) -> str | None:
        return self.judge.exemplars_digest

    @property
    def coming(self) -> list[str]:
        """What is wanted and on its way, but not in force yet."""
        if self.problem is not None or self._followed == self._changes:
            return []
        return ["the exemplars" if self.judge.classifier_digest == self._wanted else "the classifier"]

    def follow(self, view: View) -> None:
        """Learn what is wanted now."""
        self.want(view.live_classifier, changed=exemplars_changed(view))

    def want(self, classifier: str | None, *, changed: bool) -> None:
        """Follow the classifier of that digest, and the exemplars where they `changed`.

        A burst of changes to exemplars costs two builds, not one for each.
        """
        promoted = classifier != self._wanted
        if not promoted and not changed:
            return
        self._wanted = classifier
        self._changes += 1
        if changed:
            self._begin_catching_up()
        if promoted or self._following is None or self._following.done():
            self._begin()

    async def stop(self) -> None:
        """End the encoders' threads; a build is told to end, not waited for.

        What follows the registry ends with the background.
        """
        self._stopped.set()
        for batched in [*self._replaced, *([self._batched] if self._batched else [])]:
            await batched.stop()

    def _begin(self) -> None:
        self._stopped.set()
        self._stopped = threading.Event()
        self._following = self._background.spawn(self._follow(self._wanted, self._stopped))

    async def _follow(self, wanted: str | None, stopped: threading.Event) -> None:
        """Build until nothing has changed meanwhile; whoever was overtaken by another classifier puts nothing in."""
        this, done = asyncio.current_task(), 0
        async with self._builds:
            while self._following is this and done < self._changes and not stopped.is_set():
                done = self._changes
                built, problem = None, None
                try:
                    built = await self._build(wanted, stopped)
                    problem = built.problem
                except BuildStopped:
                    return
                except Exception as error:  # whatever it was: it is shown, and tried again
                    log.exception("the exemplars could not be brought in")
                    problem = reason_of("the exemplars", error)
                if self._following is this:
                    self._put_in_force(built, problem, done)

    async def _build(self, wanted: str | None, stopped: threading.Event) -> Parts:
        """What was forgotten while it was built is not in it, and a few exemplars that came meanwhile are."""
        done = self._changes
        built = await in_daemon_thread(partial(self._builder.build, wanted, self._parts, stopped))
        for _ in range(MAX_CATCHING_UP):
            if done == self._changes:
                break
            done = self._changes
            built = await in_daemon_thread(partial(self._builder.catch_up, built, most_new=MOST_NEW))
        self._caught_up = min(self._caught_up, done)
        return built

    def _put_in_force(self, built: Parts | None, problem: str | None, done: int) -> None:
        if built is not None:
            self._swap(built)
            self._begin_catching_up()
        self.problem = problem
        if problem is None:
            self._followed = done
        else:
            self._background.later(RETRY_SECONDS, self._retry, self._wanted)
        self._swapped()

    def _swap(self, parts: Parts) -> None:
        if parts.encoder is not self._parts.encoder:
            self._swap_encoder(parts.encoder)
        self._parts = parts
        self.judge = Judge(parts.classifier, parts.memory, self._batched)

    def _swap_encoder(self, encoder: Encoder | None) -> None:
        old, self._batched = self._batched, None if encoder is None else BatchedEncoder(encoder)
        if old is not None:
            self._replaced.append(old)
            self._background.later(ENCODER_GRACE_SECONDS, lambda: self._background.spawn(self._end(old)))

    async def _end(self, replaced: BatchedEncoder) -> None:
        await replaced.stop()
        self._replaced.remove(replaced)

    def _retry(self, wanted: str | None) -> None:
        if self.problem is not None and wanted == self._wanted and (self._following is None or self._following.done()):
            self._begin()

    def _begin_catching_up(self) -> None:
        if self._catching_up is None or self._catching_up.done():
            self._catching_up = self._background.spawn(self._catch_up())

    async def _catch_up(self) -> None:
        """Take what is no exemplar any more out of the judge in force, beside whatever is being built, and take in what
        is new where the build may be long.
        """
        while self._caught_up < self._changes:
            done, before = self._changes, self._parts
            most_new = 0 if self._wanted == self.judge.classifier_digest else MOST_NEW
            try:
                parts = await in_daemon_thread(partial(self._builder.catch_up, before, most_new=most_new))
            except Exception:
                log.exception("changed exemplars wait for the next build")
                return
            if self._parts is before:
                self._caught_up = done
                if parts is not before:
                    self._swap(parts)
                    self._swapped()
