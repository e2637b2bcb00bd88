"""Real vLLM engines for the soak: they share a store and a key, are killed, and come back on their ports.

Each has a core of its own. Engines whose threads compute on the same cores wait for each other by spinning: one step of
one of them then took up to a minute on two cores (its worker's stacks, looked at while it lasted).
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from adapters.home import Home
from tests.vllm_engine import VllmEngine

from .engines import start_engine
from .fault_ground import Ground


@dataclass(slots=True)
class RealEngine:
    """One vLLM, as `fault_ground.Engine`."""

    home: Home
    name: str
    core: int
    running: VllmEngine

    @property
    def url(self) -> str:
        return self.running.url

    def slow_down(self) -> None:
        """A real engine takes its time without being told."""

    def kill(self) -> None:
        if self.running.process.poll() is None:
            self.running.kill()

    def restart(self) -> None:
        """On the same port; nothing is loaded."""
        self.kill()
        port = int(self.url.rpartition(":")[2])
        self.running = start_engine(self.home, self.name, key=self.running.key, core=self.core, port=port)


def two_real_engines(ground: Ground, *, key: str) -> list[RealEngine]:
    """For `fault_ground.ground_in`: engines that take `key`."""
    found: list[RealEngine] = []
    cores = sorted(os.sched_getaffinity(0))
    try:
        for name, core in zip(("first", "second"), (cores[0], cores[-1]), strict=True):
            found.append(RealEngine(ground.home, name, core, start_engine(ground.home, name, key=key, core=core)))
    except BaseException:
        for one in found:
            one.kill()
        raise
    return found
