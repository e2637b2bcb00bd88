"""A vLLM engine that Branchline starts, watches and ends."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from adapters.base import Base

from ...errors import EngineFailed
from .client import EngineBroke
from .first_answer import first_answer
from .launch import GUARD, HOST, command, engine_environment
from .log import EngineLog
from .options import EngineOptions
from .preflight import check_python, own_version
from .run import EngineRun, free_port
from .words import advice, is_dead, last_words, progress

State = Literal["starting", "up", "down"]
START_SECONDS = 1800.0
FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
SETTLED_SECONDS = 60.0
LAST_WORDS_SECONDS = 0.5
log = logging.getLogger("branchline.vllm")
SECONDS_BETWEEN_PERCENTAGES = 5.0
PORT_TRIES = 5


class ManagedEngine:
    """One vLLM on loopback, with a random key. Lives on one event loop and never blocks it. Stopped, it stays so.

    An engine that ends, or that `restart` kills, is started again, first after half a second, then after twice as
    long each time. `on_change` is called on the loop whenever `state` or `generation` changed. `say` gets the few
    lines that tell how a start goes on; the engine's whole output goes to `log_file`. No start is given up
    while the engine's log moves; `start_seconds` of silence end it.
    """

    def __init__(
        self,
        base: Base,
        store: str,
        options: EngineOptions,
        *,
        say: Callable[[str], None],
        log_file: Path | None = None,
        start_seconds: float = START_SECONDS,
        environ: Mapping[str, str] | None = None,
        middleware: str | None = GUARD,
    ) -> None:
        self.on_change: Callable[[], None] | None = None
        self._base = base
        self._options = options
        self._listener = say
        self._log_file = log_file
        self._log = EngineLog(log_file)
        self._start_seconds = start_seconds
        self._middleware = middleware
        self._key = secrets.token_urlsafe(32)
        self._environment = engine_environment(os.environ if environ is None else environ, self._key, store)
        self._state: State = "down"
        self._generation = self._seen = 0
        self._problem: str | None = None
        self._asked: str | None = None
        self._said, self._said_at = "", 0.0
        self._stopped = False
        self._run: EngineRun | None = None
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where the current start listens, empty before the first."""
        return "" if self._run is None else f"http://{HOST}:{self._run.port}"

    @property
    def key(self) -> str:
        """The engine's API key, the same for every start."""
        return self._key

    @property
    def generation(self) -> int:
        """The number of the current start, from 1: whatever an engine remembered is gone when it changes."""
        return self._generation

    @property
    def state(self) -> State:
        """`up` once a first request was answered."""
        return self._state

    @property
    def problem(self) -> str | None:
        """Why it last went down, for operators (it may name paths); `None` again once it is up."""
        return self._problem

    async def start(self) -> None:
        """Returns once the base has answered a first request.

        Raises `ConfigInvalid` where the engine's Python lacks something, and `EngineFailed` with the engine's last
        words where it does not come up. Nothing is left running then.
        """
        if self._stopped:
            raise EngineFailed("this engine was stopped")
        if not self._base.folder.is_dir():
            raise EngineFailed(f"the base's folder {self._base.folder} does not exist", hint="check --base")
        for note in await check_python(self._options.python, self._environment, own_version()):
            self._say(note)
        self._log.rotate()
        try:
            run = await self._bring_up()
        except BaseException:
            await self.stop()
            raise
        self._supervisor = asyncio.create_task(self._supervise(run))

    async def stop(self) -> None:
        """End the engine with every process of it. Idempotent."""
        self._stopped = True
        supervisor, self._supervisor = self._supervisor, None
        if supervisor is not None:
            supervisor.cancel()
            await asyncio.gather(supervisor, return_exceptions=True)
        if self._run is not None:
            await self._run.end()
        self._log.close()
        self._change("down", None)

    def restart(self, why: str) -> None:
        """Kill an engine that hangs; the supervisor starts a new one. Returns at once."""
        if self._run is not None and not self._run.ended.done():
            self._asked = why
            self._run.kill()

    async def _bring_up(self) -> EngineRun:
        """One start, on another port where somebody took the chosen one; raises `EngineFailed`."""
        for left in reversed(range(PORT_TRIES)):
            run = await self._begin()
            try:
                await self._until_it_answers(run)
            except EngineFailed as error:
                await run.end()
                self._change("down", error.message)
                if self._stopped or not left or "address already in use" not in error.message.lower():
                    raise
            else:
                run.tail.clear()  # what it wrote while it started says nothing of its end
                self._change("up", None)
                return run
        raise AssertionError("unreachable")

    async def _begin(self) -> EngineRun:
        port = free_port()
        words = command(self._base.folder, self._base.id, port, self._options, middleware=self._middleware)
        self._asked = None
        run = self._run = await EngineRun.begin(port, words, self._environment, self._hear)
        self._generation += 1
        self._change("starting", self._problem)
        if self._stopped:  # `stop` came while the process was being made
            await run.end()
        return run

    async def _until_it_answers(self, run: EngineRun) -> None:
        """Raises `EngineFailed` where the engine ends, falls silent or refuses before its first answer."""
        loop = asyncio.get_running_loop()
        answer = asyncio.create_task(first_answer(f"http://{HOST}:{run.port}", self._key, self._base.id))
        try:
            while not answer.done() and not run.ended.done():
                left = run.heard_at + self._start_seconds - loop.time()
                if left <= 0:
                    raise EngineFailed(f"vLLM said nothing for {self._start_seconds:.0f} s and does not answer")
                await asyncio.wait({answer, run.ended}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            broken = answer.done() and isinstance(answer.exception(), EngineBroke)
            if broken:
                await asyncio.wait({run.ended}, timeout=5)  # its last words say more than a broken connection
            if run.ended.done() or self._stopped:
                raise self._failure(run)
            answer.result()
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)

    def _failure(self, run: EngineRun) -> EngineFailed:
        if self._stopped:
            return EngineFailed("vLLM was stopped")
        words = self._asked or last_words(run.tail, run.ended.result())
        whole = f"its whole log: {self._log_file}" if self._log_file else ""
        return EngineFailed(f"vLLM ended: {words}", hint="; ".join(filter(None, [advice(words), whole])))

    async def _supervise(self, first: EngineRun) -> None:
        run: EngineRun | None = first
        pause = FIRST_PAUSE_SECONDS
        while True:
            if run is not None:
                pause = await self._until_it_ends(run, pause)
            self._say(f"{self._problem}; starting it again in {pause:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            run = None
            try:
                run = await self._bring_up()
            except (EngineFailed, OSError) as error:
                self._change("down", str(error))
            except Exception:
                log.exception("starting vLLM failed")
                self._change("down", "internal error, see the gateway's log")

    async def _until_it_ends(self, run: EngineRun, pause: float) -> float:
        """Waits; returns how long to pause before the next start."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await asyncio.wait({run.ended})
        self._change("down", self._failure(run).message)
        return FIRST_PAUSE_SECONDS if loop.time() - began >= SETTLED_SECONDS else pause

    def _say(self, words: str) -> None:
        with suppress(OSError, ValueError):  # a terminal that is gone ends neither the reading nor the supervision
            self._listener(words)

    def _hear(self, line: str) -> None:
        line = line.replace(self._key, "***")
        self._log.write(line)
        if self._state == "up" and self._run is not None and is_dead(line):
            asyncio.get_running_loop().call_later(LAST_WORDS_SECONDS, self._run.kill)
        words = progress(line) if self._state == "starting" else None
        if words and self._is_news(words):
            self._said, self._said_at = words, asyncio.get_running_loop().time()
            self._say(words)

    def _is_news(self, words: str) -> bool:
        """A percentage is news every few seconds, everything else at once."""
        same_phase = ":" in words and words.partition(":")[0] == self._said.partition(":")[0]
        waited = asyncio.get_running_loop().time() - self._said_at >= SECONDS_BETWEEN_PERCENTAGES
        return words != self._said and (not same_phase or waited or words.endswith(" 100 %"))

    def _change(self, state: State, problem: str | None) -> None:
        changed = (state, self._generation) != (self._state, self._seen)
        self._state, self._problem, self._seen = state, problem, self._generation
        if changed and self.on_change is not None:
            self.on_change()
