"""A run watched from a terminal: progress bars where there is one, and Ctrl-C as a request to stop."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

import click
from tqdm import tqdm


def is_main_process() -> bool:
    """Whether this is the one process of a run, or the first of several that a launcher started."""
    ranks = (os.environ.get(name) for name in ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"))
    return next((rank for rank in ranks if rank is not None), "0") == "0"


class Terminal:
    """Prints news and progress to stderr. Bars only on a terminal; news always, but in the main process alone."""

    def __init__(self) -> None:
        self._silent = not is_main_process()
        self._stop = False
        self._what: str | None = None
        self._bar: tqdm[NoReturn] | None = None

    @property
    def stop_requested(self) -> bool:
        return self._stop

    def say(self, text: str) -> None:
        self.close()
        if not self._silent:
            click.echo(text, err=True)

    def advance(self, what: str, done: float, total: float, note: str = "") -> None:
        if self._silent or not sys.stderr.isatty():
            return
        bar = self._bar
        if bar is None or self._what != what:
            self.close()
            shape = "{desc:<28} {percentage:3.0f}% {bar} {elapsed}<{remaining} {postfix}"
            bar = tqdm(total=total, desc=what, bar_format=shape, leave=False, dynamic_ncols=True)
            self._bar, self._what = bar, what
        bar.set_postfix_str(note, refresh=False)
        bar.update(done - bar.n)
        if done >= total:
            self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar = self._what = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[Terminal]:
        """The first Ctrl-C (or SIGTERM) asks to stop at the next safe point, a second Ctrl-C stops at once."""

        def ask(signum: int, frame: FrameType | None) -> None:
            self._stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.say("stopping after this step, Ctrl-C again to stop at once")

        before = {one: signal.signal(one, ask) for one in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            self.close()
            for one, handler in before.items():
                signal.signal(one, handler)
