"""Real vLLM engines for a measurement, and what a gateway is told to use them."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from adapters.home import Home
from tests.vllm_engine import BASE_ID, VllmEngine, engine_environment, free_port, vllm_python

from .adapter_folder import BASE
from .load import Ask, Leg
from .prompts import distinct_prompts

START_SECONDS = 240.0
SHAPE = ("--dtype", "float32", "--max-model-len", "1024", "--max-lora-rank", "16")
# What a managed engine is told by its gateway's environment, as `engine` tells its own.
MANAGED_VARIABLES = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


@dataclass(frozen=True, slots=True)
class Target:
    """A server to ask: an engine or a gateway."""

    name: str
    url: str
    key: str = "none"

    def leg(
        self,
        asks: list[Ask],
        *,
        concurrency: int | None = None,
        rate: float | None = None,
        seconds: float | None = None,
    ) -> Leg:
        return Leg(self.name, self.url, asks, concurrency=concurrency, rate=rate, seconds=seconds, key=self.key)


def leave_to_engine(core: int | None) -> None:
    """Keep this process, and what it starts from here on, off the core that an engine has for itself."""
    if core is not None:
        os.sched_setaffinity(0, os.sched_getaffinity(0) - {core})


def require_vllm() -> Path:
    """The Python that holds vLLM; ends the program with one line where there is none."""
    python = vllm_python()
    if python is None:
        sys.exit("this measurement needs vLLM: set BRANCHLINE_VLLM_PYTHON or run `make .venv-vllm/.ready`")
    return python


@contextmanager
def engine(home: Home, name: str, *flags: str, key: str | None = None, core: int | None = None) -> Iterator[VllmEngine]:
    """As `start_engine`, to the end of the block."""
    running = start_engine(home, name, *flags, key=key, core=core)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()


def start_engine(
    home: Home, name: str, *flags: str, key: str | None = None, core: int | None = None, port: int | None = None
) -> VllmEngine:
    """An engine with Branchline's plugin and guard on the store of `home`, as an operator starts one; it answers.

    Replicas behind one gateway share a `key`. `flags` are vLLM's; one that is given twice counts as the last one says.
    With `core` all its processes keep to that one.
    """
    port, key, log = port or free_port(), key or secrets.token_hex(16), home.folder / f"{name}.log"
    command = [
        *(() if core is None else ("taskset", "--cpu-list", str(core))),
        *(str(require_vllm()), "-m", "vllm.entrypoints.launchers.api_server.entry"),
        *("--model", str(BASE), "--served-model-name", BASE_ID, "--host", "127.0.0.1", "--port", str(port)),
        *("--enable-lora", "--max-loras", "4", "--max-cpu-loras", "16", *SHAPE),
        *("--middleware", "adapters.engine.guard.Guard", *flags),
    ]
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=engine_environment(key, BRANCHLINE_STORE=str(home.store)),
            start_new_session=True,
            cwd=home.folder,
        )
    running = VllmEngine(f"http://127.0.0.1:{port}", key, log, process)
    try:
        _wait_until_up(running)
    except BaseException:
        if process.poll() is None:
            running.kill()
        raise
    return running


def _wait_until_up(running: VllmEngine) -> None:
    """Until it has answered once: the first request of a start takes seconds, which belong to no measurement."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and running.process.poll() is None:
        try:
            if running.get("/health")[0] == 200:
                running.chat(BASE_ID, "hello")
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"vLLM did not come up:\n{running.log.read_text(errors='replace')[-4000:]}")


def mixed_asks(models: list[str], count: int, *, tokens: int, seed: int, stream: bool = False) -> list[Ask]:
    """`count` requests with prompts of their own, the models taking turns."""
    prompts = distinct_prompts(count, seed)
    return [Ask(models[number % len(models)], text, tokens, stream) for number, text in enumerate(prompts)]


__all__ = [
    "BASE",
    "BASE_ID",
    "MANAGED_VARIABLES",
    "SHAPE",
    "Target",
    "engine",
    "leave_to_engine",
    "mixed_asks",
    "require_vllm",
    "start_engine",
]
