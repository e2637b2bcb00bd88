"""Who watches a run, and may ask it to stop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .errors import Interrupted


class Observer(Protocol):
    """Hears of a run's progress. Called from the thread that trains; must return at once."""

    @property
    def stop_requested(self) -> bool:
        """Whether the run should end itself. Asked between steps and batches, where stopping loses nothing."""

    def say(self, text: str) -> None:
        """One line of news."""

    def advance(self, what: str, done: float, total: float, note: str = "") -> None:
        """How far the present part of the run has come."""


def interrupted(where: str) -> Interrupted:
    return Interrupted(f"interrupted {where}, everything so far is saved", hint="the same command goes on from there")


def watch_rows(observer: Observer, what: str, total: int) -> Callable[[int], None]:
    """What a method calls with the number of rows it has read, of `total`; raises `Interrupted` where the observer
    asks to stop.
    """

    def on_rows(done: int) -> None:
        if observer.stop_requested:
            raise interrupted(f"while reading {what}")
        observer.advance(what, done, total)

    return on_rows


def watch_scoring(observer: Observer) -> Callable[[str, int, int], None]:
    """What a comparison calls after every batch; raises `Interrupted` where the observer asks to stop."""

    def on_batch(what: str, done: int, total: int) -> None:
        if observer.stop_requested:
            raise interrupted(f"while scoring the {what}")
        observer.advance(what, done, total)

    return on_batch
