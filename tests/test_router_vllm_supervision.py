"""What Branchline does around an engine that it started: with a programmable stand-in for vLLM."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path

import aiohttp
import pytest

from adapters.base import Base
from router.backends.vllm.options import EngineOptions
from router.backends.vllm.preflight import check_python
from router.backends.vllm.process import ManagedEngine
from router.errors import ConfigInvalid, EngineFailed
from tests.engine_family import Family
from tests.engine_stand_in import MARKER, StandIn, stand_in

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are looked up in /proc")
SECONDS = 60.0


class Scene:
    """A managed engine on a stand-in, with everything it said and every state it went through."""

    def __init__(
        self,
        vllm: StandIn,
        *,
        base: Path | None = None,
        start_seconds: float = SECONDS,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.said: list[str] = []
        self.states: list[tuple[int, str]] = []
        self.problems: list[str | None] = []
        self.log = vllm.folder / "log" / "engine.log"
        self.family = Family(f"{MARKER}={vllm.folder / 'plan'}")
        self._changed = asyncio.Event()
        self.engine = ManagedEngine(
            Base("llama", base or vllm.folder, "fingerprint", None),
            str(vllm.folder),
            EngineOptions(vllm.python),
            say=say or self.said.append,
            log_file=self.log,
            start_seconds=start_seconds,
            environ=vllm.environ,
        )
        self.engine.on_change = self._note

    def _note(self) -> None:
        self.states.append((self.engine.generation, self.engine.state))
        self.problems.append(self.engine.problem)
        self._changed.set()

    async def until(self, generation: int, state: str) -> None:
        async with asyncio.timeout(SECONDS):
            while (self.engine.generation, self.engine.state) != (generation, state):
                self._changed.clear()
                await self._changed.wait()

    async def get(self, path: str) -> int:
        headers = {"authorization": f"Bearer {self.engine.key}"}
        async with aiohttp.ClientSession() as client, client.get(self.engine.url + path, headers=headers) as answer:
            return answer.status

    def nothing_left(self) -> None:
        assert self.family.living() == {}


def play(scene: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scene())


def test_an_engine_comes_up_and_goes_without_a_trace(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path)

    async def scene() -> None:
        it = Scene(vllm)
        assert (it.engine.state, it.engine.generation, it.engine.url) == ("down", 0, "")
        await it.engine.start()
        try:
            assert await it.get("/health") == 200
            living = it.family.living()
            assert len(living) == 3  # keeper, API server, its child
            assert not any(it.engine.key in words for words in living.values())
        finally:
            await it.engine.stop()
        it.nothing_left()
        await it.engine.stop()
        assert it.states == [(1, "starting"), (1, "up"), (1, "down")]
        assert it.said == ["vLLM 0.32.0 starts"]
        assert "the key is ***" in it.log.read_text()
        assert it.engine.key not in it.log.read_text() + repr(it.engine)

    play(scene)


def test_an_engine_that_dies_is_started_again_on_another_port_until_it_is_up(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path, "up", "dies", "up")

    async def scene() -> None:
        it = Scene(vllm)
        await it.engine.start()
        try:
            url = it.engine.url
            with pytest.raises(aiohttp.ClientError):
                await it.get("/die")
            await it.until(3, "up")
            assert await it.get("/health") == 200
            assert it.engine.url != url
            assert it.engine.problem is None
            assert (1, "down") in it.states
            assert "vLLM ended: RuntimeError: it broke" in it.problems
            assert "vLLM ended: ValueError: no such weights" in it.problems
        finally:
            await it.engine.stop()
        it.nothing_left()

    play(scene)


def test_an_engine_is_started_again_also_where_nobody_can_be_told(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path, "up", "up")

    def gone(_words: str) -> None:
        raise BrokenPipeError

    async def scene() -> None:
        it = Scene(vllm, say=gone)
        await it.engine.start()
        try:
            with pytest.raises(aiohttp.ClientError):
                await it.get("/die")
            await it.until(2, "up")
            assert it.log.read_text().count("version 0.32.0") == 2  # its output is read on
        finally:
            await it.engine.stop()
        it.nothing_left()

    play(scene)


def test_a_first_start_that_fails_is_not_tried_again(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path, "dies")

    async def scene() -> None:
        it = Scene(vllm)
        with pytest.raises(EngineFailed, match="vLLM ended: ValueError: no such weights") as failed:
            await it.engine.start()
        assert "engine.log" in failed.value.hint
        assert "\n" not in str(failed.value)
        it.nothing_left()

    play(scene)
    assert vllm.starts == ["dies"]


def test_a_port_taken_in_between_is_only_another_start(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path, "taken", "taken", "up")

    async def scene() -> None:
        it = Scene(vllm)
        await it.engine.start()
        assert (it.engine.generation, it.engine.state) == (3, "up")
        await it.engine.stop()

    play(scene)


def test_an_engine_that_falls_silent_while_it_starts_is_given_up(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path, "silent")

    async def scene() -> None:
        it = Scene(vllm, start_seconds=1)
        with pytest.raises(EngineFailed, match="said nothing for 1 s"):
            await it.engine.start()
        it.nothing_left()

    play(scene)


def test_an_engine_that_refuses_its_first_request_is_not_up(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path, "refuses")

    async def scene() -> None:
        with pytest.raises(EngineFailed, match="answered 500 to its first request"):
            await Scene(vllm).engine.start()

    play(scene)


def test_an_engine_that_hangs_is_killed_and_started_anew(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path)

    async def scene() -> None:
        it = Scene(vllm)
        await it.engine.start()
        try:
            os.kill(it.family.one("api_server.entry", "keeper.py"), signal.SIGSTOP)
            it.engine.restart("it does not answer")
            await it.until(2, "up")
            assert "vLLM ended: it does not answer" in it.problems
            assert any("it does not answer; starting it again in 0.5 s" in words for words in it.said)
        finally:
            await it.engine.stop()

    play(scene)


def test_stop_ends_a_start_that_is_under_way(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path, "silent")

    async def scene() -> None:
        it = Scene(vllm)
        starting = asyncio.create_task(it.engine.start())
        await it.until(1, "starting")
        await it.engine.stop()
        with pytest.raises(EngineFailed, match="stopped"):
            await starting
        it.nothing_left()

    play(scene)


def test_a_cancelled_start_leaves_nothing(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path, "silent")

    async def scene() -> None:
        it = Scene(vllm)
        starting = asyncio.create_task(it.engine.start())
        await it.until(1, "starting")
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        it.nothing_left()

    play(scene)


def test_the_death_of_the_keeper_ends_its_engine(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path)

    async def scene() -> None:
        it = Scene(vllm)
        await it.engine.start()
        try:
            before = set(it.family.living())
            os.kill(it.family.one("keeper.py"), signal.SIGKILL)
            await it.until(2, "up")
            assert not before & set(it.family.living())
        finally:
            await it.engine.stop()
        it.nothing_left()

    play(scene)


def test_a_base_that_is_gone_is_told_before_anything_starts(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path)

    async def scene() -> None:
        with pytest.raises(EngineFailed, match="nowhere does not exist"):
            await Scene(vllm, base=tmp_path / "nowhere").engine.start()

    play(scene)


def test_the_engines_python_is_looked_at_first(tmp_path: Path) -> None:
    vllm = stand_in(tmp_path / "other", version="0.33.1", plugin=False)
    empty = {name: value for name, value in vllm.environ.items() if name != "PYTHONPATH"}

    async def scene() -> None:
        with pytest.raises(ConfigInvalid, match=r"cannot be started: No such file.*BRANCHLINE_VLLM_PYTHON"):
            await check_python("/nowhere/python", vllm.environ)
        with pytest.raises(ConfigInvalid, match="does not answer as a Python: no answer"):
            await check_python("/bin/true", vllm.environ)
        with pytest.raises(ConfigInvalid, match=r"vLLM is not installed in .*: pip install vllm"):
            await check_python(vllm.python, empty)
        with pytest.raises(ConfigInvalid, match="brings no plugin for vLLM: pip install branchline into it again"):
            await check_python(vllm.python, vllm.environ)
        older = stand_in(tmp_path / "older", branchline="0.0.9")
        assert await check_python(older.python, older.environ, "0.1.0") == [
            f"Branchline 0.0.9 in {older.python}, but this gateway is 0.1.0: install the same in both"
        ]
        newer = stand_in(tmp_path / "newer", version="0.33.1")
        assert await check_python(newer.python, newer.environ) == [
            f"vLLM 0.33.1 in {newer.python}: Branchline was tested with 0.32.0"
        ]

    play(scene)
