"""Which classifier and which exemplars are in force in all workers; the parent itself judges nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from adapters.exemplars import Exemplars, exemplars_changed
from adapters.view import View

from ..background import Background
from ..classify.judge import Judge
from ..classify.memory import Memory
from ..daemon_thread import in_daemon_thread
from ..following.judge_building import ReadExemplars, reason_of
from .agreement import Agreement

RETRY_SECONDS = 1.0
log = logging.getLogger("branchline.judging")


class SharedJudging:
    """Keeps the contract of `JudgeKeeper`: reads exemplars once for all workers, each of which builds its own memory.

    A digest is said to be in force when every worker that takes requests has it; until then, what one has that lags.
    """

    def __init__(
        self, read_exemplars: ReadExemplars, agreement: Agreement, background: Background, swapped: Callable[[], None]
    ) -> None:
        self._read_exemplars = read_exemplars
        self._agreement = agreement
        self._background = background
        self._swapped = swapped
        self._classifier: str | None = None
        self._exemplars: str | None = None
        self._changes = 0  # of exemplars
        self._told = 0  # of these changes, how many the workers were told of
        self._telling: asyncio.Task[None] | None = None
        self._unread: str | None = None
        self._in_force: tuple[str | None, str | None] = (None, None)
        self.judge = Judge(None, Memory.build(()))
        agreement.judged = self._look

    @property
    def classifier_digest(self) -> str | None:
        return self._in_force[0]

    @property
    def exemplars_digest(self) -> str | None:
        return self._in_force[1]

    @property
    def coming(self) -> list[str]:
        if self.problem is not None:
            return []
        if self.classifier_digest != self._classifier:
            return ["the classifier"]
        return ["the exemplars"] if self.exemplars_digest != self._exemplars or self._told < self._changes else []

    @property
    def problem(self) -> str | None:
        of_workers = (one.problem for one in self._agreement.judged_with() if one.problem is not None)
        return self._unread or next(of_workers, None)

    def follow(self, view: View) -> None:
        if view.live_classifier != self._classifier:
            self._classifier = view.live_classifier
            self._agreement.tell_judge(self._classifier, None)
        if exemplars_changed(view):
            self._changes += 1
            self._begin()

    async def stop(self) -> None:
        """What reads exemplars ends with the background."""

    def _begin(self) -> None:
        if self._telling is None or self._telling.done():
            self._telling = self._background.spawn(self._tell())

    async def _tell(self) -> None:
        while self._told < self._changes:
            changes = self._changes
            try:
                found = await in_daemon_thread(self._read_exemplars)
            except Exception as error:  # whatever it was: it is shown, and tried again
                log.exception("the exemplars could not be read")
                self._unread = reason_of("the exemplars", error)
                self._background.later(RETRY_SECONDS, self._begin)
                return
            self._unread = None
            self._told = changes
            self._exemplars = found.digest
            self._agreement.tell_judge(self._classifier, _document(found))
        self._look()

    def _look(self) -> None:
        """Find out what is in force now."""
        told = self._agreement.judged_with()
        found = (
            _common(self._classifier, [one.classifier_digest for one in told]),
            _common(self._exemplars, [one.exemplars_digest for one in told]),
        )
        if found != self._in_force:
            self._in_force = found
            self._swapped()


def _common(wanted: str | None, digests: list[str | None]) -> str | None:
    """What is wanted, where all have it; else what one has that lags."""
    return next((digest for digest in digests if digest != wanted), wanted)


def _document(exemplars: Exemplars) -> dict[str, object]:
    rows = [[row.label, row.text, row.source] for row in exemplars.rows]
    return {"digest": exemplars.digest, "rows": rows}
