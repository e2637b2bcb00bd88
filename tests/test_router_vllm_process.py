"""A real vLLM that Branchline starts: what it survives, what it leaves behind, what it says when it cannot start."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.base import find_base
from router.backends.vllm.options import EngineOptions
from router.backends.vllm.process import ManagedEngine
from router.errors import EngineFailed
from tests.engine_family import Family, until
from tests.vllm_engine import POCKET_BASE, ROOT, VllmEngine, needs_vllm, vllm_python

pytestmark = [needs_vllm, pytest.mark.timeout(900)]
START_SECONDS = 240.0


class Gateway:
    """The stand-in gateway's process, and what it has told."""

    def __init__(self, process: subprocess.Popen[str], store: Path, log: Path) -> None:
        self.process = process
        self.log = log
        self.family = Family(f"BRANCHLINE_STORE={store}")
        self.said: list[str] = []
        self.changes: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def now(self) -> dict[str, Any]:
        return self.changes[-1] if self.changes else {"generation": 0, "state": "down"}

    def until(self, generation: int, state: str) -> None:
        until(
            lambda: (
                (self.now["generation"], self.now["state"]) == (generation, state) or self.process.poll() is not None
            ),
            f"expected start {generation} to be {state}, found {self.now}",
            START_SECONDS,
        )
        assert self.process.poll() is None, self.said

    def answers(self) -> None:
        """The base answers at the present address, for the key alone."""
        engine = VllmEngine(self.now["url"], self.now["key"], self.log, self.process)  # type: ignore[arg-type]
        assert engine.chat("base", "hello")["choices"][0]["message"]["content"]
        assert engine.get("/health", key="another")[0] == 401

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            facts = json.loads(line)
            if "said" in facts:
                self.said.append(facts["said"])
            else:
                self.changes.append(facts)


@contextmanager
def gateway(folder: Path) -> Iterator[Gateway]:
    store, log = folder / "store", folder / "log" / "engine.log"
    store.mkdir()
    secrets = {"BRANCHLINE_API_KEY": "of-the-gateway", "BRANCHLINE_REGISTRY": "of-the-registry"}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.managed_gateway", str(vllm_python()), str(POCKET_BASE), str(store), str(log)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **secrets, "VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"},
    )
    it = Gateway(process, store, log)
    try:
        yield it
    finally:
        it.kill()
        until(lambda: not it.family.living(), f"left: {it.family.living()}", 30)


def test_a_managed_engine_outlives_its_parts_but_not_its_gateway(tmp_path: Path) -> None:
    with gateway(tmp_path) as it:
        it.until(1, "up")
        it.answers()
        words = " ".join(it.family.living().values())
        assert "VLLM::EngineCore" in words
        assert it.now["key"] not in words + it.log.read_text() + " ".join(it.said)
        server = it.family.one("api_server.entry", "keeper.py")
        environment = Path(f"/proc/{server}/environ").read_text()
        assert "of-the-gateway" not in environment
        assert "of-the-registry" not in environment
        assert any(said.startswith("KV cache: ") for said in it.said)

        os.kill(it.family.one("VLLM::EngineCore"), signal.SIGKILL)
        it.until(2, "up")
        it.answers()
        assert any("EngineCore was killed" in (change["problem"] or "") for change in it.changes)

        before, memory = it.family.living(), shared_memory(it.family)
        assert memory
        os.kill(it.family.one("api_server.entry", "keeper.py"), signal.SIGKILL)
        it.until(3, "starting")
        assert not set(before) & set(it.family.living())
        assert not any(file.exists() for file in memory)
        it.until(3, "up")
        it.answers()

        before = it.family.living()
        os.kill(it.family.one("keeper.py"), signal.SIGKILL)
        it.until(4, "starting")
        until(lambda: not set(before) & set(it.family.living()), "an engine without a keeper is left", 30)
        until(lambda: "VLLM::EngineCore" in " ".join(it.family.living().values()), "no engine process", START_SECONDS)
    # the end of the block kills the gateway and waits until no process of its engine is left


def test_a_base_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    words = failed_start(tmp_path, POCKET_BASE, gone=True)
    assert words.startswith(f"the base's folder {tmp_path / 'gone'} does not exist")


def test_a_broken_config_is_one_clear_line(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(POCKET_BASE, base)
    (base / "config.json").write_text('{"architectures": ')
    assert "config.json' is not a valid JSON file" in failed_start(tmp_path, base)


def test_a_context_the_base_does_not_have_is_one_clear_line(tmp_path: Path) -> None:
    words = failed_start(tmp_path, POCKET_BASE, max_model_len=99_999_999)
    assert "max_model_len (99999999) is greater than the derived max_model_len" in words
    assert "lower --max-model-len" in words


def test_too_little_memory_for_the_cache_is_one_clear_line(tmp_path: Path) -> None:
    words = failed_start(tmp_path, POCKET_BASE, gigabytes=40_000)
    assert "less than requested memory for kv (40000.0 GiB)" in words
    assert "lower VLLM_CPU_KVCACHE_SPACE" in words


def shared_memory(family: Family) -> set[Path]:
    """The files of shared memory that these processes have mapped."""
    maps = "".join(Path(f"/proc/{pid}/maps").read_text() for pid in family.living())
    return {Path(line.split()[5]) for line in maps.splitlines() if "/dev/shm/psm_" in line}  # noqa: S108


def failed_start(home: Path, base: Path, *, gone: bool = False, max_model_len: int = 1024, gigabytes: int = 1) -> str:
    """Start an engine that cannot start; what it says, in one line. Nothing of it may be left."""
    log, store = home / "engine.log", home / "store"
    found = find_base(str(base))
    engine = ManagedEngine(
        replace(found, folder=home / "gone") if gone else found,
        str(store),
        EngineOptions(str(vllm_python()), max_model_len=max_model_len),
        say=lambda _: None,
        log_file=log,
        environ={**os.environ, "VLLM_CPU_KVCACHE_SPACE": str(gigabytes), "HF_HUB_OFFLINE": "1"},
    )
    with pytest.raises(EngineFailed) as failed:
        asyncio.run(engine.start())
    words = str(failed.value)
    assert len(words.splitlines()) == 1
    assert "Traceback" not in words
    assert (engine.state, Family(f"BRANCHLINE_STORE={store}").living()) == ("down", {})
    assert gone or (str(log) in words and engine.key not in log.read_text())
    return words
